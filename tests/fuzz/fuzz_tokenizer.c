/* Text of any bytes through the tokenizer of tests/golden: refused as no UTF-8, or ids inside the vocabulary that stream back as UTF-8. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "nn/tokenizer.h"

static struct tpo_tokenizer *tokenizer(void)
{
    static struct tpo_tokenizer *t;
    const struct tpo_added_token added[] = {{"<box_begin>", 32000}, {"<boxes>", 32003}, {"<track_box>", 32006}};
    const char *source = getenv("TPO_SOURCE");
    char path[4096];
    snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/tokenizer.model", source != NULL ? source : ".");
    if (t == NULL) TPO_ASSERT(tpo_tokenizer_open_model(&t, path, added, 3, NULL) == TPO_OK);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static struct tpo_ids ids;
    struct tpo_detokenizer d = {0};
    char out[TPO_DETOKENIZE_MAX];
    if (n == 0) return 0;
    const char *text = (const char *)bytes + 1;
    bool valid = tpo_utf8_valid(text, n - 1) && memchr(text, 0, n - 1) == NULL;
    ids.n = 0;
    TPO_ASSERT((tpo_tokenizer_encode(tokenizer(), &ids, text, n - 1, bytes[0] & 1, NULL) == TPO_OK) == valid);
    for (int i = 0; i <= ids.n; i++) {
        TPO_ASSERT(i == ids.n || (ids.ids[i] >= 0 && ids.ids[i] < tpo_tokenizer_vocabulary(tokenizer())));
        int length = tpo_detokenize(&d, tokenizer(), i < ids.n ? ids.ids[i] : -1, out);
        TPO_ASSERT(length < TPO_DETOKENIZE_MAX && tpo_utf8_valid(out, (size_t)length));
    }
    return 0;
}
