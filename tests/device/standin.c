/* A stand-in for librknnrt.so: it answers the calls that the rknn-toolkit-lite2 wheel makes, computes a
 * tiny model whose right answer is known, and misbehaves on demand. Written against the ctypes
 * structures that the wheel itself declares; it has nothing to do with the real library.
 *
 * A "model" is a text file:
 *     STANDIN
 *     inputs input_ids attention_mask token_type_ids
 *     lengths 32 64
 *     output pooled 8            (pooled N | tokens N | logit 1)
 *
 * STANDIN_SCRIPT names a file of faults, read at every call: one "CORE WHEN FAULT" a line.
 *     CORE   the core mask given to rknn_set_core_mask (0 before it was called), or *
 *     WHEN   always | id=N (the first row holds token N after [CLS]) | after=N (more than N runs)
 *            | once (the first time on each core, whatever the process) | from=N (from the Nth context
 *            of the process on)
 *     FAULT  no-init | init-crash | mask | inputs | int64 | run | run-slow | run-late | outputs | stale
 *            | zero | nan | size | wrong | drift | scale | hang | crash | abort
 * STANDIN_LOG names a file to which every call is appended. STANDIN_API and STANDIN_DRIVER are the
 * versions it says it has (default: 2.3.2 and 0.9.8).
 */
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef uint64_t context_t;
typedef struct { uint32_t n_input, n_output; } in_out_num;
typedef struct {
    uint32_t index, n_dims, dims[16];
    char name[256];
    uint32_t n_elems, size;
    int32_t fmt, type, qnt_type;
    int8_t fl;
    uint32_t zp;
    float scale;
    uint32_t w_stride, size_with_stride;
    uint8_t pass_through;
    uint32_t h_stride;
} tensor_attr;
typedef struct {
    uint32_t index, shape_number;
    int32_t fmt;
    char name[256];
    uint32_t range[512][16];
    uint32_t n_dims;
} input_range;
typedef struct { uint32_t index; void *buf; uint32_t size; uint8_t pass_through; int32_t type, fmt; } input_t;
typedef struct { uint8_t want_float, is_prealloc; uint32_t index; void *buf; uint32_t size; } output_t;
typedef struct { char api_version[256], drv_version[256]; } sdk_version;

enum { IN_OUT_NUM = 0, INPUT_ATTR = 1, OUTPUT_ATTR = 2, SDK_VERSION = 5, CUSTOM_STRING = 7,
       NATIVE_INPUT = 8, NATIVE_OUTPUT = 9, DYNAMIC_RANGE = 13, CURRENT_INPUT = 14, CURRENT_OUTPUT = 15 };
enum { FLOAT32 = 0, INT64 = 8, UNDEFINED_FORMAT = 3 };

typedef struct {
    char names[8][64], kind[16];
    uint32_t n_inputs, lengths[16], n_lengths, dim, length;
    uint32_t core;
    int runs;
    void *in[8];
    uint32_t in_size[8];
    float *out;
    uint32_t out_size; /* bytes */
} model_t;

static void note(const char *what, const model_t *m) {
    const char *path = getenv("STANDIN_LOG");
    FILE *f = path ? fopen(path, "a") : NULL;
    if (!f) return;
    fprintf(f, "%d %s core=%u length=%u\n", (int)getpid(), what, m ? m->core : 0, m ? m->length : 0);
    fclose(f);
}

static int named(const model_t *m, const char *name) {
    for (uint32_t i = 0; i < m->n_inputs; i++)
        if (!strcmp(m->names[i], name)) return (int)i;
    return -1;
}

/* The first time on this core: a file that only one can make tells, also after a restart. */
static int first_time(const char *script, const char *what, uint32_t core) {
    char path[512];
    snprintf(path, sizeof path, "%s.%s.%u", script, what, core);
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (fd < 0) return 0;
    close(fd);
    return 1;
}

static int contexts; /* opened by this process */

/* Does the script ask for this fault, here and now? */
static int fault(const model_t *m, const char *wanted) {
    const char *path = getenv("STANDIN_SCRIPT");
    FILE *f = path ? fopen(path, "r") : NULL;
    char line[256], core[32], when[32], what[32];
    int hit = 0;
    while (f && !hit && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%31s %31s %31s", core, when, what) != 3 || strcmp(what, wanted)) continue;
        if (strcmp(core, "*") && (uint32_t)atoi(core) != m->core) continue;
        int ids = named(m, "input_ids");
        if (!strcmp(when, "always")) hit = 1;
        else if (!strncmp(when, "after=", 6)) hit = m->runs > atoi(when + 6);
        else if (!strncmp(when, "from=", 5)) hit = contexts >= atoi(when + 5);
        else if (!strcmp(when, "once")) hit = first_time(path, what, m->core);
        else if (!strncmp(when, "id=", 3) && ids >= 0 && m->in[ids] && m->in_size[ids] >= 16)
            hit = ((int64_t *)m->in[ids])[1] == atoll(when + 3);
    }
    if (f) fclose(f);
    if (hit) note(wanted, m);
    return hit;
}

static uint32_t width(const model_t *m, uint32_t i) { return strcmp(m->names[i], "word_embeddings") ? 1 : m->dim; }
static int is_integer(const model_t *m, uint32_t i) {
    const char *n = m->names[i];
    return !strcmp(n, "input_ids") || !strcmp(n, "attention_mask") || !strcmp(n, "token_type_ids") || strlen(n) < 3;
}
static uint32_t out_elems(const model_t *m) { return strcmp(m->kind, "tokens") ? m->dim : m->dim * m->length; }

static void resize(model_t *m, uint32_t length) {
    m->length = length;
    m->out_size = out_elems(m) * 4;
}

int rknn_init(context_t *ctx, void *model, uint32_t size, uint32_t flag, void *extend) {
    model_t *m = calloc(1, sizeof *m);
    (void)flag; (void)extend;
    contexts++;
    if (fault(m, "init-crash")) *(volatile int *)0 = 0;
    if (fault(m, "no-init") || size < 8 || memcmp(model, "STANDIN", 7)) { note("refused", m); free(m); *ctx = 0; return -6; }
    char *text = strndup(model, size), *save, *line;
    for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *word, *rest, *key = strtok_r(line, " ", &rest);
        if (!key) continue;
        if (!strcmp(key, "inputs"))
            while ((word = strtok_r(NULL, " ", &rest)) && m->n_inputs < 8) strncpy(m->names[m->n_inputs++], word, 63);
        if (!strcmp(key, "lengths"))
            while ((word = strtok_r(NULL, " ", &rest)) && m->n_lengths < 16) m->lengths[m->n_lengths++] = (uint32_t)atoi(word);
        if (!strcmp(key, "output")) {
            strncpy(m->kind, strtok_r(NULL, " ", &rest), 15);
            m->dim = (uint32_t)atoi(strtok_r(NULL, " ", &rest));
        }
    }
    free(text);
    m->out = calloc(m->dim * 4096, 4);
    resize(m, m->lengths[0]);
    *ctx = (context_t)(uintptr_t)m;
    note("init", m);
    return 0;
}

static void describe(const model_t *m, tensor_attr *a, int output, int stride_known) {
    uint32_t i = a->index;
    size_t known = stride_known ? sizeof *a : 360;
    memset(a, 0, known < 360 ? known : 360);
    a->index = i;
    a->fmt = UNDEFINED_FORMAT;
    a->scale = 1;
    a->dims[0] = 1;
    if (output) {
        strcpy(a->name, m->kind);
        a->n_dims = strcmp(m->kind, "tokens") ? 2 : 3;
        a->dims[a->n_dims - 1] = m->dim;
        if (a->n_dims == 3) a->dims[1] = m->length;
        a->type = FLOAT32;
        a->n_elems = out_elems(m);
        a->size = a->n_elems * 4;
    } else {
        strcpy(a->name, m->names[i]);
        a->dims[1] = m->length;
        if (!strcmp(m->names[i], "live_one")) a->dims[1] = 1;
        a->n_dims = strcmp(m->names[i], "word_embeddings") ? 2 : 3;
        if (a->n_dims == 3) a->dims[2] = m->dim;
        a->type = is_integer(m, i) ? INT64 : FLOAT32;
        a->n_elems = a->dims[1] * width(m, i);
        a->size = a->n_elems * (a->type == INT64 ? 8 : 4);
    }
}

int rknn_query(context_t ctx, int cmd, void *info, uint32_t size) {
    model_t *m = (model_t *)(uintptr_t)ctx;
    switch (cmd) {
    case IN_OUT_NUM: ((in_out_num *)info)->n_input = m->n_inputs; ((in_out_num *)info)->n_output = 1; return 0;
    case INPUT_ATTR: case NATIVE_INPUT: case CURRENT_INPUT: describe(m, info, 0, size >= sizeof(tensor_attr)); return 0;
    case OUTPUT_ATTR: case NATIVE_OUTPUT: case CURRENT_OUTPUT: describe(m, info, 1, size >= sizeof(tensor_attr)); return 0;
    case SDK_VERSION:
        snprintf(((sdk_version *)info)->api_version, 256, "%s (stand-in)", getenv("STANDIN_API") ? getenv("STANDIN_API") : "2.3.2");
        snprintf(((sdk_version *)info)->drv_version, 256, "%s", getenv("STANDIN_DRIVER") ? getenv("STANDIN_DRIVER") : "0.9.8");
        return 0;
    case DYNAMIC_RANGE: {
        input_range *r = info;
        if (m->n_lengths < 2) return -5;
        strcpy(r->name, m->names[r->index]);
        r->shape_number = m->n_lengths;
        r->fmt = UNDEFINED_FORMAT;
        r->n_dims = strcmp(m->names[r->index], "word_embeddings") ? 2 : 3;
        for (uint32_t i = 0; i < m->n_lengths; i++) {
            r->range[i][0] = 1; r->range[i][1] = m->lengths[i]; r->range[i][2] = m->dim;
        }
        return 0;
    }
    default: return -5;
    }
}

int rknn_set_input_shapes(context_t ctx, uint32_t n, tensor_attr attrs[]) {
    model_t *m = (model_t *)(uintptr_t)ctx;
    for (uint32_t i = 0; i < m->n_lengths && n == m->n_inputs; i++)
        if (attrs[0].dims[1] == m->lengths[i]) { resize(m, m->lengths[i]); return 0; }
    return -5;
}

/* The real library leaves a context usable after a refused mask; so does this one. */
int rknn_set_core_mask(context_t ctx, uint32_t mask) {
    model_t *m = (model_t *)(uintptr_t)ctx;
    m->core = mask;
    note("mask", m);
    return fault(m, "mask") ? -5 : 0;
}

int rknn_inputs_set(context_t ctx, uint32_t n, input_t inputs[]) {
    model_t *m = (model_t *)(uintptr_t)ctx;
    if (n != m->n_inputs) return -8;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = inputs[i].index;
        if (inputs[i].type == INT64 && fault(m, "int64")) return -5;
        m->in[k] = realloc(m->in[k], inputs[i].size);
        m->in_size[k] = inputs[i].size;
        memcpy(m->in[k], inputs[i].buf, inputs[i].size);
    }
    return fault(m, "inputs") ? -8 : 0;
}

static float word(int64_t id, uint32_t d) {
    uint32_t x = (uint32_t)id * 2654435761u + d * 2246822519u;
    x ^= x >> 15; x *= 3266489917u; x ^= x >> 13;
    return (float)(x & 0xffff) / 32768.0f - 1.0f;
}

static void compute(model_t *m) {
    int ids = named(m, "input_ids"), words = named(m, "word_embeddings"), mask = named(m, "attention_mask");
    int types = named(m, "token_type_ids"), kinds = named(m, "token_types"), added = named(m, "additive_mask");
    int shares = named(m, "pooling_weights"), one = named(m, "live_one");
    double *sum = calloc(m->dim, sizeof *sum), norm = 0, logit = 0;
    uint32_t hidden = strcmp(m->kind, "logit") ? m->dim : 1;
    for (uint32_t t = 0; t < m->length; t++)
        for (uint32_t d = 0; d < hidden; d++) {
            float e = words >= 0 ? ((float *)m->in[words])[t * m->dim + d] : word(((int64_t *)m->in[ids])[t], d);
            float h = e * (1.0f + 0.125f * (float)(t % 5));
            if (types >= 0) h += 0.25f * (float)((int64_t *)m->in[types])[t];
            if (kinds >= 0) h += 0.25f * ((float *)m->in[kinds])[t];
            if (one >= 0) h *= *(float *)m->in[one];
            if (!strcmp(m->kind, "tokens")) m->out[t * m->dim + d] = h;
            if (added >= 0 ? ((float *)m->in[added])[t] == 0 : ((int64_t *)m->in[mask])[t] != 0)
                sum[d] += shares >= 0 ? h * ((float *)m->in[shares])[t] : h;
        }
    for (uint32_t d = 0; d < hidden; d++) norm += sum[d] * sum[d], logit += sum[d];
    if (!strcmp(m->kind, "pooled"))
        for (uint32_t d = 0; d < m->dim; d++) m->out[d] = (float)(sum[d] / sqrt(norm));
    if (!strcmp(m->kind, "logit")) m->out[0] = (float)logit;
    free(sum);
}

int rknn_run(context_t ctx, void *extend) {
    model_t *m = (model_t *)(uintptr_t)ctx;
    (void)extend;
    m->runs++;
    note("run", m);
    if (fault(m, "hang")) for (;;) pause();
    if (fault(m, "crash")) *(volatile int *)0 = 0;
    if (fault(m, "abort")) abort();
    if (fault(m, "run-slow")) usleep(300000);
    if (fault(m, "run-late")) { sleep(6); return -1; }
    if (fault(m, "run")) return -1;
    if (fault(m, "stale")) return 0;
    compute(m);
    uint32_t n = out_elems(m);
    if (fault(m, "nan")) m->out[n / 2] = NAN;
    if (fault(m, "zero")) memset(m->out, 0, n * 4);
    if (fault(m, "scale")) for (uint32_t i = 0; i < n; i++) m->out[i] *= 3;
    if (fault(m, "drift")) { /* a pooled answer of cosine 0.9991 to the right one */
        double dot = 0, norm = 0, right = 0;
        for (uint32_t i = 0; i < n; i++) dot += m->out[i] * (i % 2 ? 1 : -1), right += m->out[i] * m->out[i];
        for (uint32_t i = 0; i < n; i++) { double o = (i % 2 ? 1 : -1) - dot / right * m->out[i]; norm += o * o; }
        double tilt = 0.04245 / sqrt(norm) * sqrt(right);
        for (uint32_t i = 0; i < n; i++) {
            double o = (i % 2 ? 1 : -1) - dot / right * m->out[i];
            m->out[i] = (float)((m->out[i] + tilt * o) * 0.9991);
        }
    }
    if (fault(m, "wrong")) for (uint32_t i = 0; i < n; i++) m->out[i] = -m->out[i];
    return 0;
}

int rknn_outputs_get(context_t ctx, uint32_t n, output_t outputs[], void *extend) {
    model_t *m = (model_t *)(uintptr_t)ctx;
    (void)extend;
    if (n != 1 || fault(m, "outputs")) return -9;
    uint32_t size = fault(m, "size") ? m->out_size / 2 : m->out_size;
    if (outputs[0].is_prealloc) {
        if (outputs[0].size < m->out_size) return -9;
        memcpy(outputs[0].buf, m->out, size);
    } else {
        outputs[0].buf = malloc(m->out_size);
        memcpy(outputs[0].buf, m->out, m->out_size);
    }
    outputs[0].size = size;
    return 0;
}

int rknn_outputs_release(context_t ctx, uint32_t n, output_t outputs[]) {
    (void)ctx;
    for (uint32_t i = 0; i < n; i++)
        if (!outputs[i].is_prealloc) { free(outputs[i].buf); outputs[i].buf = NULL; }
    return 0;
}

int rknn_destroy(context_t ctx) {
    model_t *m = (model_t *)(uintptr_t)ctx;
    if (!m) return -7;
    note("destroy", m);
    for (uint32_t i = 0; i < 8; i++) free(m->in[i]);
    free(m->out);
    free(m);
    return 0;
}
