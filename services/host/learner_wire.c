/* This file owns the passage between the learner's structs and the messages of learner.proto. */
#include "services/host/learner_wire.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define REFUSE(err, ...) tpo_fail(err, TPO_INVALID_ARGUMENT, "learner", __VA_ARGS__)
#define NO_MEMORY(err)   tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a training message")

/* n messages of one kind and the list that points at them. */
#define LIST(arena, type, init, n)                                                                                                 \
    __extension__({                                                                                                                \
        type **list_ = tpo_arena_alloc(arena, ((n) + 1) * sizeof(*list_)),                                                         \
             *items_ = tpo_arena_alloc(arena, ((n) + 1) * sizeof(*items_));                                                        \
        for (size_t i_ = 0; list_ != NULL && items_ != NULL && i_ < (n); i_++) {                                                   \
            init(&items_[i_]);                                                                                                     \
            list_[i_] = &items_[i_];                                                                                               \
        }                                                                                                                          \
        items_ != NULL ? list_ : NULL;                                                                                             \
    })

static char *text_of(const char *text)
{
    return (char *)(text != NULL ? text : "");
}

static const char *text_or_null(const char *text)
{
    return text[0] != '\0' ? text : NULL;
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------------ */

void tpo_key_pack(Tpo__V1__Key *out, const struct tpo_key *key, uint64_t lease)
{
    tpo__v1__key__init(out);
    out->run = (char *)key->run;
    out->step = key->step;
    out->version = key->version;
    out->micro_batch = key->micro_batch;
    out->lease = lease;
}

int tpo_key_unpack(struct tpo_key *out, const Tpo__V1__Key *m, struct tpo_error *err)
{
    if (m == NULL) return REFUSE(err, "key is missing");
    if (strlen(m->run) >= sizeof(out->run)) return REFUSE(err, "key.run is longer than %zu", sizeof(out->run) - 1);
    *out = (struct tpo_key){.step = m->step, .version = m->version, .micro_batch = m->micro_batch};
    snprintf(out->run, sizeof(out->run), "%s", m->run);
    return TPO_OK;
}

/* --- the plan --------------------------------------------------------------------------------------------------------------------------- */

static void group_pack(Tpo__V1__Group *to, const struct tpo_group *g)
{
    to->name = (char *)g->name;
    to->names = (char **)g->patterns;
    to->n_names = (size_t)g->n_patterns;
    to->optimiser = g->optimiser == TPO_MUON ? "muon" : "adamw";
    to->beta1 = g->beta1, to->beta2 = g->beta2, to->eps = g->eps, to->weight_decay = g->weight_decay;
    to->clipped = g->clipped;
    to->split = (uint32_t)g->split;
}

Tpo__V1__Plan *tpo_plan_pack(struct tpo_arena *a, const struct tpo_plan *plan)
{
    Tpo__V1__Plan *m = tpo_arena_alloc(a, sizeof(*m));
    if (m == NULL) return NULL;
    tpo__v1__plan__init(m);
    m->seed = plan->seed;
    m->lanes = (uint32_t)plan->lanes;
    m->micro_batches = (uint32_t)plan->micro_batches;
    m->first_lane = (uint32_t)plan->first_lane;
    m->own_lanes = (uint32_t)plan->own_lanes;
    m->n_groups = (size_t)plan->n_groups;
    m->n_losses = (size_t)plan->n_losses;
    m->groups = LIST(a, Tpo__V1__Group, tpo__v1__group__init, m->n_groups);
    m->losses = LIST(a, Tpo__V1__LossWeight, tpo__v1__loss_weight__init, m->n_losses);
    if (m->groups == NULL || m->losses == NULL) return NULL;
    for (size_t i = 0; i < m->n_groups; i++) group_pack(m->groups[i], &plan->groups[i]);
    for (size_t i = 0; i < m->n_losses; i++) {
        m->losses[i]->name = (char *)plan->losses[i].name;
        m->losses[i]->weight = plan->losses[i].weight;
    }
    return m;
}

static bool share_of_one(float x)
{
    return x >= 0 && x < 1;
}

static int group_unpack(struct tpo_group *g, const Tpo__V1__Group *m, struct tpo_error *err)
{
    const bool muon = strcmp(m->optimiser, "muon") == 0;
    if (!muon && strcmp(m->optimiser, "adamw") != 0)
        return REFUSE(err, "optimiser \"%.32s\" is neither adamw nor muon", m->optimiser);
    if (!share_of_one(m->beta1) || (!muon && (!share_of_one(m->beta2) || !(m->eps > 0) || !isfinite(m->eps))) ||
        !(m->weight_decay >= 0) || !isfinite(m->weight_decay) || m->split > 64 || m->n_names > 4096)
        return REFUSE(err, "group \"%.31s\": a constant of its optimiser is out of range", m->name);
    *g = (struct tpo_group){.patterns = (const char *const *)m->names,
                            .n_patterns = (int)m->n_names,
                            .optimiser = muon ? TPO_MUON : TPO_ADAMW,
                            .beta1 = m->beta1,
                            .beta2 = m->beta2,
                            .eps = m->eps,
                            .weight_decay = m->weight_decay,
                            .clipped = m->clipped,
                            .split = (int)m->split};
    snprintf(g->name, sizeof(g->name), "%s", m->name);
    return TPO_OK;
}

int tpo_plan_unpack(struct tpo_plan *out, struct tpo_arena *a, const Tpo__V1__Plan *m, struct tpo_error *err)
{
    if (m == NULL) return REFUSE(err, "plan is missing");
    if (m->n_groups > 256 || m->n_losses > 64 || m->lanes > 4096 || m->micro_batches > 4096 || m->first_lane > 4096 ||
        m->own_lanes > 4096)
        return REFUSE(err, "plan: a number is out of range");
    struct tpo_group *groups = tpo_arena_calloc(a, sizeof(*groups) * (m->n_groups + 1));
    struct tpo_loss_weight *losses = tpo_arena_calloc(a, sizeof(*losses) * (m->n_losses + 1));
    if (groups == NULL || losses == NULL) return NO_MEMORY(err);
    for (size_t i = 0; i < m->n_groups; i++)
        if (group_unpack(&groups[i], m->groups[i], err) != TPO_OK) return TPO_INVALID_ARGUMENT;
    for (size_t i = 0; i < m->n_losses; i++) {
        if (!(m->losses[i]->weight >= 0) || !isfinite(m->losses[i]->weight))
            return REFUSE(err, "the weight of loss %zu is out of range", i);
        losses[i] = (struct tpo_loss_weight){m->losses[i]->name, m->losses[i]->weight};
    }
    *out = (struct tpo_plan){.seed = m->seed,
                             .lanes = (int)m->lanes,
                             .micro_batches = (int)m->micro_batches,
                             .first_lane = (int)m->first_lane,
                             .own_lanes = (int)m->own_lanes,
                             .groups = groups,
                             .n_groups = (int)m->n_groups,
                             .losses = losses,
                             .n_losses = (int)m->n_losses};
    return TPO_OK;
}

/* --- tensors ------------------------------------------------------------------------------------------------------------------------------ */

static void tensor_pack(Tpo__V1__Tensor *t, int dtype, int n_dims, const int64_t *shape, const void *data)
{
    size_t bytes = tpo_dtype_size(dtype);
    for (int k = 0; k < n_dims; k++) bytes *= (size_t)shape[k];
    t->dtype = (Tpo__V1__DType)dtype;
    t->n_shape = (size_t)n_dims;
    t->shape = (int64_t *)shape;
    t->data = (ProtobufCBinaryData){bytes, (uint8_t *)data};
}

Tpo__V1__NamedTensor **tpo_tensors_pack(struct tpo_arena *a, const struct tpo_named_tensor *x, int n)
{
    Tpo__V1__NamedTensor **list = LIST(a, Tpo__V1__NamedTensor, tpo__v1__named_tensor__init, (size_t)n);
    Tpo__V1__Tensor **tensors = LIST(a, Tpo__V1__Tensor, tpo__v1__tensor__init, (size_t)n);
    if (list == NULL || tensors == NULL) return NULL;
    for (int i = 0; i < n; i++) {
        list[i]->name = (char *)x[i].name;
        list[i]->tensor = tensors[i];
        tensor_pack(tensors[i], (int)x[i].dtype, x[i].n_dims, x[i].shape, x[i].data);
    }
    return list;
}

static int tensor_unpack(struct tpo_named_tensor *out, struct tpo_arena *a, const char *name, const Tpo__V1__Tensor *t,
                         struct tpo_error *err)
{
    const size_t element = t != NULL ? tpo_dtype_size((int)t->dtype) : 0;
    if (element == 0 || t->n_shape < 1 || t->n_shape > TPO_DIMS_MAX)
        return REFUSE(err, "tensor \"%.64s\": no type or no shape", name);
    size_t size = 1;
    *out = (struct tpo_named_tensor){.name = name, .dtype = (enum tpo_dtype)t->dtype, .n_dims = (int)t->n_shape};
    for (size_t k = 0; k < t->n_shape; k++) {
        if (t->shape[k] < 0 || t->shape[k] > INT32_MAX || (t->shape[k] > 0 && size > (size_t)INT32_MAX / (size_t)t->shape[k]))
            return REFUSE(err, "tensor \"%.64s\": its shape is out of range", name);
        size *= (size_t)(out->shape[k] = t->shape[k]);
    }
    if (size * element != t->data.len)
        return REFUSE(err, "tensor \"%.64s\": %zu bytes, its shape needs %zu", name, t->data.len, size * element);
    void *data = tpo_arena_alloc(a, t->data.len + 1);
    if (data == NULL) return NO_MEMORY(err);
    if (t->data.len > 0) memcpy(data, t->data.data, t->data.len);
    out->data = data;
    return TPO_OK;
}

int tpo_tensors_unpack(struct tpo_named_tensor *out, struct tpo_arena *a, Tpo__V1__NamedTensor *const *m, size_t n,
                       struct tpo_error *err)
{
    int rc = n <= TPO_PORTS_MAX ? TPO_OK : REFUSE(err, "%zu tensors, at most %d", n, TPO_PORTS_MAX);
    for (size_t i = 0; i < n && rc == TPO_OK; i++) rc = tensor_unpack(&out[i], a, m[i]->name, m[i]->tensor, err);
    return rc;
}

/* --- conversations -------------------------------------------------------------------------------------------------------------------------- */

static Tpo__V1__Rect **rects_pack(struct tpo_arena *a, const float (*boxes)[4], size_t n)
{
    Tpo__V1__Rect **list = LIST(a, Tpo__V1__Rect, tpo__v1__rect__init, n);
    for (size_t i = 0; list != NULL && i < n; i++)
        list[i]->x0 = boxes[i][0], list[i]->y0 = boxes[i][1], list[i]->x1 = boxes[i][2], list[i]->y1 = boxes[i][3];
    return list;
}

static int rects_unpack(const float (**out)[4], int *n_out, struct tpo_arena *a, Tpo__V1__Rect *const *m, size_t n,
                        struct tpo_error *err)
{
    float(*boxes)[4] = tpo_arena_alloc(a, sizeof(*boxes) * (n + 1));
    if (n > 4096) return REFUSE(err, "%zu boxes in one conversation", n);
    if (boxes == NULL) return NO_MEMORY(err);
    for (size_t i = 0; i < n; i++) {
        const float box[4] = {m[i]->x0, m[i]->y0, m[i]->x1, m[i]->y1};
        for (int k = 0; k < 4; k++)
            if (!(box[k] >= 0 && box[k] <= 1)) return REFUSE(err, "box %zu leaves the picture", i);
        memcpy(boxes[i], box, sizeof(box));
    }
    *out = (const float(*)[4])boxes;
    *n_out = (int)n;
    return TPO_OK;
}

static Tpo__V1__Attention **attention_pack(struct tpo_arena *a, const struct tpo_attention_target *x, size_t n)
{
    Tpo__V1__Attention **list = LIST(a, Tpo__V1__Attention, tpo__v1__attention__init, n);
    for (size_t i = 0; list != NULL && i < n; i++) {
        list[i]->layer = (uint32_t)x[i].layer, list[i]->head = (uint32_t)x[i].head, list[i]->weight = x[i].weight;
        list[i]->from = (uint32_t)x[i].from, list[i]->from_offset = (uint32_t)x[i].from_offset;
        list[i]->to = (uint32_t)x[i].to, list[i]->to_offset = (uint32_t)x[i].to_offset;
        list[i]->slots = (float *)x[i].slots;
        list[i]->n_slots = x[i].slots != NULL ? (size_t)x[i].n_slots : 0;
    }
    return list;
}

/* Bytes of the text that an offset at this place counts in. */
static size_t bytes_at(const Tpo__V1__TrainingTurn *turn, uint32_t place)
{
    if (turn == NULL) return 0;
    return strlen(place == TPO_AT_ANSWER ? turn->answer : turn->question);
}

static int attention_unpack(struct tpo_conversation *c, struct tpo_arena *a, const Tpo__V1__Conversation *m, struct tpo_error *err)
{
    struct tpo_attention_target *out = tpo_arena_calloc(a, sizeof(*out) * (m->n_attention + 1));
    const Tpo__V1__TrainingTurn *last = m->n_turns > 0 ? m->turns[m->n_turns - 1] : NULL;
    if (m->n_attention > 4096) return REFUSE(err, "%zu attention targets in one conversation", m->n_attention);
    if (out == NULL) return NO_MEMORY(err);
    for (size_t i = 0; i < m->n_attention; i++) {
        const Tpo__V1__Attention *x = m->attention[i];
        if (x->layer > 4096 || x->head > 4096 || !isfinite(x->weight) || x->from > TPO_AT_SLOTS || x->to > TPO_AT_SLOTS ||
            x->from_offset > bytes_at(last, x->from) || x->to_offset > bytes_at(last, x->to) || x->n_slots > 65536)
            return REFUSE(err, "attention target %zu: a number is out of range", i);
        for (size_t k = 0; k < x->n_slots; k++)
            if (!(x->slots[k] >= 0 && x->slots[k] <= 1.001f))
                return REFUSE(err, "attention target %zu: its slots are no distribution", i);
        out[i] = (struct tpo_attention_target){.layer = (int)x->layer,
                                               .head = (int)x->head,
                                               .weight = x->weight,
                                               .from = (enum tpo_attention_place)x->from,
                                               .from_offset = (int)x->from_offset,
                                               .to = (enum tpo_attention_place)x->to,
                                               .to_offset = (int)x->to_offset,
                                               .slots = x->n_slots > 0 ? x->slots : NULL,
                                               .n_slots = (int)x->n_slots};
    }
    c->attention = out;
    c->n_attention = (int)m->n_attention;
    return TPO_OK;
}

static bool conversation_pack(Tpo__V1__Conversation *m, struct tpo_arena *a, const struct tpo_conversation *c)
{
    m->system = text_of(c->system);
    m->weight = c->weight;
    m->weight_end = c->weight_end;
    m->n_turns = (size_t)c->n_turns;
    m->n_boxes = (size_t)c->n_user_boxes;
    m->n_targets = (size_t)c->n_boxes;
    m->n_attention = (size_t)c->n_attention;
    m->turns = LIST(a, Tpo__V1__TrainingTurn, tpo__v1__training_turn__init, m->n_turns);
    m->boxes = rects_pack(a, c->user_boxes, m->n_boxes);
    m->targets = rects_pack(a, c->boxes, m->n_targets);
    m->attention = attention_pack(a, c->attention, m->n_attention);
    for (size_t i = 0; m->turns != NULL && i < m->n_turns; i++) {
        m->turns[i]->question = text_of(c->turns[i].question);
        m->turns[i]->answer = text_of(c->turns[i].answer);
    }
    return m->turns != NULL && m->boxes != NULL && m->targets != NULL && m->attention != NULL;
}

static int conversation_unpack(struct tpo_conversation *c, struct tpo_arena *a, const Tpo__V1__Conversation *m,
                               struct tpo_error *err)
{
    struct tpo_turn *turns = tpo_arena_alloc(a, sizeof(*turns) * (m->n_turns + 1));
    if (m->n_turns < 1 || m->n_turns > 256) return REFUSE(err, "%zu turns in one conversation", m->n_turns);
    if (!(m->weight >= 0) || !isfinite(m->weight) || !(m->weight_end >= 0) || !isfinite(m->weight_end))
        return REFUSE(err, "the weight of a conversation is out of range");
    if (turns == NULL) return NO_MEMORY(err);
    for (size_t i = 0; i < m->n_turns; i++) turns[i] = (struct tpo_turn){m->turns[i]->question, m->turns[i]->answer};
    *c = (struct tpo_conversation){.system = text_or_null(m->system),
                                   .n_turns = (int)m->n_turns,
                                   .turns = turns,
                                   .weight = m->weight,
                                   .weight_end = m->weight_end};
    int rc = rects_unpack(&c->user_boxes, &c->n_user_boxes, a, m->boxes, m->n_boxes, err);
    if (rc == TPO_OK) rc = rects_unpack(&c->boxes, &c->n_boxes, a, m->targets, m->n_targets, err);
    if (rc == TPO_OK) rc = attention_unpack(c, a, m, err);
    return rc;
}

/* --- samples -------------------------------------------------------------------------------------------------------------------------------- */

static bool pixels_pack(Tpo__V1__Sample *m, struct tpo_arena *a, const struct tpo_sample *s)
{
    Tpo__V1__Tensor *t = tpo_arena_alloc(a, sizeof(*t));
    int64_t *shape = tpo_arena_alloc(a, 4 * sizeof(*shape));
    if (t == NULL || shape == NULL) return false;
    tpo__v1__tensor__init(t);
    shape[0] = s->n_frames, shape[1] = s->height, shape[2] = s->width, shape[3] = 3;
    tensor_pack(t, TPO_U8, 4, shape, s->pixels);
    m->pixels = t;
    return true;
}

static bool sample_pack(Tpo__V1__Sample *m, struct tpo_arena *a, const struct tpo_sample *s, bool with_pixels)
{
    m->media_id = text_of(s->media_id);
    m->next_media_id = text_of(s->next_media_id);
    m->frames = (uint32_t)s->n_frames;
    m->n_conversations = (size_t)s->n_conversations;
    m->n_targets = (size_t)s->n_targets;
    m->conversations = LIST(a, Tpo__V1__Conversation, tpo__v1__conversation__init, m->n_conversations);
    m->targets = tpo_tensors_pack(a, s->targets, s->n_targets);
    bool ok = m->conversations != NULL && m->targets != NULL;
    for (size_t i = 0; ok && i < m->n_conversations; i++) ok = conversation_pack(m->conversations[i], a, &s->conversations[i]);
    return ok && with_pixels && s->pixels != NULL ? pixels_pack(m, a, s) : ok;
}

Tpo__V1__Sample **tpo_samples_pack(struct tpo_arena *a, const struct tpo_sample *samples, int n, bool with_pixels)
{
    Tpo__V1__Sample **list = LIST(a, Tpo__V1__Sample, tpo__v1__sample__init, (size_t)n);
    for (int i = 0; list != NULL && i < n; i++)
        if (!sample_pack(list[i], a, &samples[i], with_pixels)) return NULL;
    return list;
}

static int pixels_unpack(struct tpo_sample *s, struct tpo_arena *a, const Tpo__V1__Tensor *t, struct tpo_error *err)
{
    struct tpo_named_tensor x;
    int rc = tensor_unpack(&x, a, "pixels", t, err);
    if (rc != TPO_OK) return rc;
    if (x.dtype != TPO_U8 || x.n_dims != 4 || x.shape[3] != 3 || x.shape[0] < 1 || x.shape[0] > 4096 || x.shape[1] < 1 ||
        x.shape[2] < 1)
        return REFUSE(err, "pixels must be u8 (T, H, W, 3)");
    s->n_frames = (int)x.shape[0], s->height = (int)x.shape[1], s->width = (int)x.shape[2];
    s->pixels = x.data;
    return TPO_OK;
}

static int sample_unpack(struct tpo_sample *s, struct tpo_arena *a, const Tpo__V1__Sample *m, struct tpo_error *err)
{
    if (m->n_conversations > TPO_CONVERSATIONS_MAX) return REFUSE(err, "%zu conversations about one sample", m->n_conversations);
    if (m->n_targets > 64) return REFUSE(err, "%zu targets of one sample", m->n_targets);
    if (m->augmentation[0] != '\0') return REFUSE(err, "augmentation \"%.32s\": none is known", m->augmentation);
    if (m->frames > 4096) return REFUSE(err, "%u frames in one sample", m->frames);
    struct tpo_conversation *conversations = tpo_arena_calloc(a, sizeof(*conversations) * (m->n_conversations + 1));
    struct tpo_named_tensor *targets = tpo_arena_calloc(a, sizeof(*targets) * (m->n_targets + 1));
    if (conversations == NULL || targets == NULL) return NO_MEMORY(err);
    *s = (struct tpo_sample){.n_frames = (int)m->frames,
                             .media_id = text_or_null(m->media_id),
                             .next_media_id = text_or_null(m->next_media_id),
                             .n_conversations = (int)m->n_conversations,
                             .conversations = conversations,
                             .n_targets = (int)m->n_targets,
                             .targets = targets};
    int rc = TPO_OK;
    if (m->pixels != NULL && s->media_id != NULL) return REFUSE(err, "pixels and media_id exclude one another");
    if (m->pixels != NULL) rc = pixels_unpack(s, a, m->pixels, err);
    for (size_t i = 0; i < m->n_conversations && rc == TPO_OK; i++)
        rc = conversation_unpack(&conversations[i], a, m->conversations[i], err);
    for (size_t i = 0; i < m->n_targets && rc == TPO_OK; i++)
        rc = tensor_unpack(&targets[i], a, m->targets[i]->name, m->targets[i]->tensor, err);
    return rc;
}

int tpo_samples_unpack(const struct tpo_sample **out, struct tpo_arena *a, Tpo__V1__Sample *const *m, size_t n,
                       struct tpo_error *err)
{
    if (n > TPO_SAMPLES_MAX) return REFUSE(err, "%zu samples in one micro-batch, at most %d", n, TPO_SAMPLES_MAX);
    struct tpo_sample *samples = tpo_arena_calloc(a, sizeof(*samples) * (n + 1));
    int rc = samples != NULL ? TPO_OK : NO_MEMORY(err);
    for (size_t i = 0; i < n && rc == TPO_OK; i++) rc = sample_unpack(&samples[i], a, m[i], err);
    *out = samples;
    return rc;
}

/* --- rows and pieces ------------------------------------------------------------------------------------------------------------------------ */

Tpo__V1__Row **tpo_rows_pack(struct tpo_arena *a, const struct tpo_row *rows, int n)
{
    Tpo__V1__Row **list = LIST(a, Tpo__V1__Row, tpo__v1__row__init, (size_t)n);
    for (int i = 0; list != NULL && i < n; i++) {
        list[i]->sample = (uint32_t)rows[i].sample, list[i]->conversation = (uint32_t)rows[i].conversation;
        list[i]->position = (uint32_t)rows[i].position, list[i]->task = (uint32_t)rows[i].task;
    }
    return list;
}

int tpo_rows_unpack(const struct tpo_row **out, struct tpo_arena *a, Tpo__V1__Row *const *m, size_t n, struct tpo_error *err)
{
    struct tpo_row *rows = tpo_arena_alloc(a, sizeof(*rows) * (n + 1));
    if (rows == NULL) return NO_MEMORY(err);
    for (size_t i = 0; i < n; i++) {
        if (m[i]->sample >= TPO_SAMPLES_MAX || m[i]->conversation >= TPO_CONVERSATIONS_MAX || m[i]->position > INT32_MAX ||
            m[i]->task > 1024)
            return REFUSE(err, "row %zu: a number is out of range", i);
        rows[i] = (struct tpo_row){(int)m[i]->sample, (int)m[i]->conversation, (int)m[i]->position, (int)m[i]->task};
    }
    *out = rows;
    return TPO_OK;
}

void tpo_chunk_pack(Tpo__V1__Chunk *out, const struct tpo_chunk *x, int64_t *shape)
{
    tpo__v1__chunk__init(out);
    if (x == NULL || x->name == NULL) return;
    memcpy(shape, x->shape, sizeof(x->shape));
    out->name = (char *)x->name;
    out->part = (char *)x->part;
    out->n_shape = (size_t)x->n_dims;
    out->shape = shape;
    out->offset = (uint64_t)x->offset;
    out->data = (ProtobufCBinaryData){(size_t)x->count * sizeof(float), (uint8_t *)x->data};
}

int tpo_chunk_unpack(struct tpo_chunk *out, struct tpo_arena *a, const Tpo__V1__Chunk *m, struct tpo_error *err)
{
    if (m->n_shape > TPO_DIMS_MAX || m->offset > INT64_MAX || m->data.len % sizeof(float) != 0 ||
        m->data.len > (size_t)TPO_CHUNK_ELEMENTS * sizeof(float))
        return REFUSE(err, "a piece of \"%.64s\" is out of range", m->name);
    *out = (struct tpo_chunk){.name = m->name,
                              .part = m->part,
                              .n_dims = (int)m->n_shape,
                              .offset = (int64_t)m->offset,
                              .count = (int64_t)(m->data.len / sizeof(float))};
    for (size_t k = 0; k < m->n_shape; k++) out->shape[k] = m->shape[k];
    float *data = tpo_arena_alloc(a, m->data.len + sizeof(float));
    if (data == NULL) return NO_MEMORY(err);
    if (m->data.len > 0) memcpy(data, m->data.data, m->data.len);
    out->data = data;
    return TPO_OK;
}
