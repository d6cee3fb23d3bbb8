/* tokenizer_sp.h -- libsentencepiece as C: the one door to the C++ library. nn/tokenizer.h is what the rest of the program uses. */
#ifndef TPO_NN_TOKENIZER_SP_H
#define TPO_NN_TOKENIZER_SP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct tpo_sp;

/* A model file; NULL when it is missing or not one, with the library's reason in `why`. */
struct tpo_sp *tpo_sp_open(const char *path, char *why, size_t why_size);
void tpo_sp_close(struct tpo_sp *sp);
int tpo_sp_size(const struct tpo_sp *sp);

/* Ids of n bytes of text, and for each the byte of the text where it ends (a prefix that the library adds ends at 0). Writes at most `capacity`
 * of them and returns how many there are; -1 when the library refuses. */
int tpo_sp_encode(const struct tpo_sp *sp, const char *text, size_t n, int32_t *ids, int32_t *ends, int capacity);

/* Text of ids as the library decodes them, NUL-terminated in malloc'd memory; NULL: an id is outside the model, or no memory. */
char *tpo_sp_decode(const struct tpo_sp *sp, const int32_t *ids, int n);

enum tpo_sp_kind { TPO_SP_TEXT, TPO_SP_BYTE, TPO_SP_UNKNOWN, TPO_SP_CONTROL };
enum tpo_sp_kind tpo_sp_kind(const struct tpo_sp *sp, int32_t id);
const char *tpo_sp_piece(const struct tpo_sp *sp, int32_t id); /* with U+2581 for spaces, "<0x41>" for bytes; borrowed */

#ifdef __cplusplus
}
#endif
#endif
