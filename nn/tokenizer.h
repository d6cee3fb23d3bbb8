/* tokenizer.h -- text to ids and back: a SentencePiece model and the added tokens of a model folder (docs/model.md, Prompt).
 *
 * Rule (Hugging Face's slow Llama tokenizer, legacy): split the text at added tokens, longest first, neighbours keep their spaces; encode every
 * remaining piece on its own, so that each gets its own leading U+2581. Whether added tokens are looked for is the caller's choice: in what a
 * user typed they are plain text. <unk>, <s> and </s> (ids 0, 1, 2) count as added tokens. Any number of threads may use one. */
#ifndef TPO_NN_TOKENIZER_H
#define TPO_NN_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

#define TPO_ID_UNK 0
#define TPO_ID_BOS 1
#define TPO_ID_EOS 2

struct tpo_added_token {
    const char *text;
    int32_t id;
};

/* A growing list; zero it to begin, free it at the end. ends[i]: the byte of the encoded text where ids[i]'s text ends. */
struct tpo_ids {
    int32_t *ids, *ends;
    int n, capacity;
};
int tpo_ids_push(struct tpo_ids *list, int32_t id, int32_t end);
void tpo_ids_free(struct tpo_ids *list);

struct tpo_tokenizer;

/* tokenizer.model and added_tokens.json of a folder. */
int tpo_tokenizer_open(struct tpo_tokenizer **out, const char *folder, struct tpo_error *err);
/* A model file with the tokens given, copied. NOT_FOUND, INVALID_ARGUMENT "tokenizer". */
int tpo_tokenizer_open_model(struct tpo_tokenizer **out, const char *model_path, const struct tpo_added_token *added, int n,
                             struct tpo_error *err);
void tpo_tokenizer_close(struct tpo_tokenizer *t);           /* accepts NULL */
int tpo_tokenizer_vocabulary(const struct tpo_tokenizer *t); /* one more than the largest id */

/* Appends the ids of n bytes of UTF-8. INVALID_ARGUMENT "utf8" for bytes that are none (NUL included); TPO_ENOMEM. */
int tpo_tokenizer_encode(const struct tpo_tokenizer *t, struct tpo_ids *out, const char *text, size_t n, bool added,
                         struct tpo_error *err);

/* Text of ids in malloc'd memory, the library's leading space kept as it keeps it, added tokens as they are written; NULL for an id outside the
 * vocabulary or no memory. */
char *tpo_tokenizer_decode(const struct tpo_tokenizer *t, const int32_t *ids, int n);

/* Text of an answer as it grows. Whole code points come out as soon as they are known; added tokens and <s>, </s> give nothing; the
 * space that the library puts before the first word is dropped; bytes that make no character become U+FFFD. */
struct tpo_detokenizer {
    bool begun;
    unsigned char pending[4];
    int n_pending;
};
#define TPO_DETOKENIZE_MAX 512 /* bytes one id can yield, pending ones and the NUL included */
/* Writes the text that `id` completes, NUL-terminated, and returns its length. id < 0: the end, nothing may stay pending. */
int tpo_detokenize(struct tpo_detokenizer *d, const struct tpo_tokenizer *t, int32_t id, char out[TPO_DETOKENIZE_MAX]);

#endif
