/* request_check.h -- what a request asks for, checked: everything that can be refused before a service is bothered.
 *
 * INVALID_ARGUMENT reasons: "turns" (none, unknown role, last one not the user's or empty), "text_too_long", "media" (neither or both of
 * id and data), "media_id", "box_missing" (more {box} than boxes), "box_invalid" (not finite, inverted, outside the picture),
 * "box_without_media", "task", "request_id", "max_new_tokens", "temperature", "top_p", "timeout"; UNIMPLEMENTED "multi_media". */
#ifndef TPO_GATEWAY_REQUEST_CHECK_H
#define TPO_GATEWAY_REQUEST_CHECK_H

#include "common/status.h"
#include "gateway.pb-c.h"
#include "gateway/gateway.h"
#include "router.pb-c.h"

int tpo_request_check(const Tpo__V1__PerceiveRequest *request, const struct tpo_gateway_settings *limits, struct tpo_error *err);

/* Boxes as fractions of the displayed picture, in order; to be called when its size is known. `rects` has room for n_boxes. */
int tpo_request_boxes(const Tpo__V1__PerceiveRequest *request, const Tpo__V1__MediaInfo *media, Tpo__V1__Rect *rects,
                      struct tpo_error *err);

/* "image", "video", or "" without media. */
const char *tpo_request_media_kind(const Tpo__V1__MediaInfo *media);

#endif
