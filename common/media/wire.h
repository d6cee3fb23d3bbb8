/* wire.h -- how a client (media.c) and a decoding worker (worker/) talk. Both are one build; nothing here is stored or sent elsewhere.
 *
 * The client makes three things and spawns tpo-media with them: a SOCK_SEQPACKET pair (the worker's end is descriptor TPO_MEDIA_SOCKET), a sealed
 * memfd of ring_bytes (TPO_MEDIA_RING), and nothing more. One packet is one struct. The worker answers every request, in order:
 *
 *   (start)                    -> reply HELLO once the system-call filter is up; only then does the client send anything
 *   OPEN  + a descriptor       -> info of the file, or an error; whatever was open is closed first
 *   FRAME index, offset        -> pixels (height, width, 3) u8 lie in the ring at offset; the time of that frame
 *   CLOSE                      -> ok; also with nothing open
 *
 * The client chooses where a frame goes, so it may ask for several ahead of reading them: that is the ring. The worker seeks when an
 * index lies behind it or past a keyframe, and goes on linearly otherwise. An error of FRAME leaves the file open.
 * End of file on the socket ends the worker. It trusts the client; the client believes nothing of a reply before checking it. */
#ifndef TPO_COMMON_MEDIA_WIRE_H
#define TPO_COMMON_MEDIA_WIRE_H

#include <stdint.h>

#define TPO_MEDIA_SOCKET 3
#define TPO_MEDIA_RING   4
#define TPO_MEDIA_SIDE   65535 /* no side of a picture is longer */

enum tpo_media_kind { TPO_MEDIA_OPEN = 1, TPO_MEDIA_FRAME, TPO_MEDIA_CLOSE };

struct tpo_media_request {
    uint32_t kind, id;
    int32_t timeout_ms; /* the worker ends itself when a request takes longer, should the client be gone */
    int64_t index;      /* FRAME */
    uint64_t offset;    /* FRAME: into the ring */
    int64_t max_pixels; /* OPEN: of a frame as coded and as displayed */
    int64_t max_frames; /* OPEN */
};

struct tpo_media_reply {
    uint32_t id;           /* of the request; 0 for HELLO */
    int32_t code;          /* enum tpo_status */
    int32_t image;         /* OPEN: 1 for a still */
    int32_t width, height; /* OPEN: as displayed */
    int64_t n_frames;
    double fps, duration_s;
    double time_s; /* FRAME: since the first frame */
    char reason[32], message[128];
};

#endif
