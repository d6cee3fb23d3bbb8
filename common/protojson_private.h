/* protojson_private.h -- what protojson.c and protojson_write.c share. */
#ifndef TPO_COMMON_PROTOJSON_PRIVATE_H
#define TPO_COMMON_PROTOJSON_PRIVATE_H

#include <stddef.h>

#include "common/protojson.h"

/* Where in the message we are, for errors: a list that lives on the stack of the walk. */
struct tpo_json_path {
    const struct tpo_json_path *up;
    const char *name; /* NULL: an element */
    size_t index;
};

/* The error with the place before it, printable whatever the place's names are. */
int tpo_json_fail_at(struct tpo_error *err, int code, const char *reason, const struct tpo_json_path *p, const char *what);
size_t tpo_json_element_size(const ProtobufCFieldDescriptor *f); /* bytes of one value in memory */
void tpo_json_camel(char *out, size_t size, const char *name);   /* lowerCamelCase of a field's name */

#endif
