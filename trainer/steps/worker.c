/* This file owns a thread with room for one job. */
#include "trainer/steps/worker.h"

#include <pthread.h>
#include <stdlib.h>

struct tpo_worker {
    pthread_t thread;
    bool threaded, stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int (*job)(void *arg, struct tpo_error *err); /* under lock: NULL when there is none to do */
    void *arg;
    bool busy;
    int rc;
    struct tpo_error error;
};

static void *work(void *arg)
{
    struct tpo_worker *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->stop || w->job != NULL) {
        if (w->job == NULL) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        int (*job)(void *, struct tpo_error *) = w->job;
        void *own = w->arg;
        struct tpo_error err = {0};
        w->job = NULL;
        pthread_mutex_unlock(&w->lock);
        const int rc = job(own, &err);
        pthread_mutex_lock(&w->lock);
        w->rc = rc;
        w->error = err;
        w->busy = false;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int tpo_worker_open(struct tpo_worker **out, bool threaded, struct tpo_error *err)
{
    struct tpo_worker *w = calloc(1, sizeof(*w));
    if (w == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a worker");
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->threaded = threaded && pthread_create(&w->thread, NULL, work, w) == 0;
    if (threaded && !w->threaded) {
        tpo_worker_close(w);
        return tpo_fail(err, TPO_ENOMEM, "thread", "no thread for a worker");
    }
    *out = w;
    return TPO_OK;
}

void tpo_worker_close(struct tpo_worker *w)
{
    if (w == NULL) return;
    if (w->threaded) {
        pthread_mutex_lock(&w->lock);
        w->stop = true;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->lock);
        pthread_join(w->thread, NULL);
    }
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

void tpo_worker_give(struct tpo_worker *w, int (*job)(void *arg, struct tpo_error *err), void *arg)
{
    if (!w->threaded) {
        w->error = (struct tpo_error){0};
        w->rc = job(arg, &w->error);
        return;
    }
    pthread_mutex_lock(&w->lock);
    TPO_ASSERT(!w->busy);
    w->job = job;
    w->arg = arg;
    w->busy = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

int tpo_worker_wait(struct tpo_worker *w, struct tpo_error *err)
{
    pthread_mutex_lock(&w->lock);
    while (w->busy) pthread_cond_wait(&w->changed, &w->lock);
    const int rc = w->rc;
    if (rc != TPO_OK && err != NULL) *err = w->error;
    w->rc = TPO_OK;
    pthread_mutex_unlock(&w->lock);
    return rc;
}
