/* limits.h -- bounds of a request that more than one program counts on. */
#ifndef TPO_COMMON_LIMITS_H
#define TPO_COMMON_LIMITS_H

#define TPO_BOXES_MAX 64 /* boxes that one request asks about */

#endif
