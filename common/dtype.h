/* dtype.h -- the element types of a tensor, on the wire (proto DType has the same numbers) and in a file. */
#ifndef TPO_COMMON_DTYPE_H
#define TPO_COMMON_DTYPE_H

#include <stddef.h>

enum tpo_dtype { TPO_F32 = 1, TPO_BF16 = 2, TPO_F16 = 3, TPO_U8 = 4, TPO_I32 = 5, TPO_I64 = 6 };

size_t tpo_dtype_size(int dtype);      /* bytes of one element; 0 for a number outside the enum */
const char *tpo_dtype_name(int dtype); /* safetensors' name, "BF16"; "?" for a number outside the enum */
int tpo_dtype_parse(const char *name); /* the number, or 0 */

#endif
