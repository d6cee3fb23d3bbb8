/* prefixes.h -- which service owns a tensor, by the start of its name (docs/model-folder.md, Who owns what).
 *
 * One table holds every prefix of the published checkpoint, heads that are not built yet and tensors that nothing reads
 * included, and `ext.SERVICE.` for what the published model lacks. A name under none of them belongs to no model of ours. */
#ifndef TPO_COMMON_PREFIXES_H
#define TPO_COMMON_PREFIXES_H

/* "encoder", "router", "region", "temporal", "mask"; "dead" for published tensors that nothing uses; NULL when the name is under no
 * prefix. The answer is a literal. */
const char *tpo_prefix_owner(const char *tensor_name);

#endif
