/* One multiprocessor: warps in order, scoreboards, four partitions that issue one instruction a cycle each, pipes, the
   load-store unit, and servers for what L2 and DRAM bring. Times are cycles. What each number stands for is said in
   model.py, which fills these structures. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALU, FMA, HEAVY, XU, MEMORY, UNIFORM, TENSOR, DOUBLE, CONTROL, PIPES };
enum { PLAIN, LOAD_L1, LOAD_SHARED, LOAD_DRAM, STORE, ON_CHIP, BARRIER, GROUP, WAIT_GROUP };
enum { PARTITIONS = 4, SCOREBOARDS = 6, DEEP = 32 };
#define NEVER (INT64_MAX / 2)

typedef struct {
    int32_t pipe, interval, stall, write, read, wait, kind, unit, latency, keep, asynchronous;
    float l2, dram;
} Step;

typedef struct {
    int32_t warps, slots, programs, fma_pipes;
    int32_t l2, dram, launch, barrier;
    double l2_bytes, dram_bytes;
} Setting;

typedef struct {
    double cycles, issued;
} Result;

typedef struct {
    const Step *trace;
    int32_t length, at, waits, active, first_wave, count[SCOREBOARDS];
    int64_t ready, group, pending[SCOREBOARDS][DEEP];
} Warp;

static void release(Warp *warp, int board, int64_t when) {
    if (board >= SCOREBOARDS) return;
    if (warp->count[board] == DEEP) {
        if (warp->pending[board][1] < warp->pending[board][0]) warp->pending[board][1] = warp->pending[board][0];
        memmove(warp->pending[board], warp->pending[board] + 1, (DEEP - 1) * sizeof(int64_t));
        warp->count[board]--;
    }
    warp->pending[board][warp->count[board]++] = when;
}

/* When all but the last `keep` of what a scoreboard waits for is there. */
static int64_t free_at(const Warp *warp, int board, int keep) {
    int64_t latest = 0;
    for (int i = 0; i < warp->count[board] - keep; i++)
        if (warp->pending[board][i] > latest) latest = warp->pending[board][i];
    return latest;
}

static int64_t served(double *server, int64_t arrives, double bytes, double bytes_a_cycle) {
    if (*server < arrives) *server = arrives;
    *server += bytes / bytes_a_cycle;
    return (int64_t)*server;
}

static void start(Warp *warp, const Step *trace, int32_t length, int64_t when, int first_wave) {
    memset(warp, 0, sizeof *warp);
    warp->trace = trace;
    warp->length = length;
    warp->ready = when;
    warp->active = length > 0;
    warp->first_wave = first_wave;
}

int simulate(const Step *const *traces, const int32_t *lengths, const Setting *set, Result *result) {
    int total = set->warps * set->slots, started = 0, finished = 0;
    Warp *warps = calloc(total, sizeof(Warp));
    int *arrived = calloc(set->slots, sizeof(int)), *ended = calloc(set->slots, sizeof(int));
    if (!warps || !arrived || !ended) return 1;
    int64_t pipe_free[PARTITIONS][PIPES], now = 0;
    memset(pipe_free, 0, sizeof pipe_free);
    double unit = 0, l2 = 0, dram = 0, issued = 0;
    int latest[PARTITIONS] = {0};
    for (; started < set->slots && started < set->programs; started++)
        for (int k = 0; k < set->warps; k++)
            start(&warps[started * set->warps + k], traces[k], lengths[k], set->launch + 4 * started, 1);
    while (finished < set->programs) {
        int64_t next = NEVER;
        int any = 0;
        for (int part = 0; part < PARTITIONS; part++) {
            int mine = (total - part + PARTITIONS - 1) / PARTITIONS; /* warps part, part + 4, ... */
            for (int turn = 0; turn < mine; turn++) {
                int id = part + PARTITIONS * ((latest[part] + turn) % mine), slot = id / set->warps;
                Warp *warp = &warps[id];
                if (!warp->active || warp->waits) continue;
                int64_t earliest = warp->ready;
                const Step *step = &warp->trace[warp->at];
                for (int board = 0; earliest <= now && board < SCOREBOARDS; board++)
                    if (step->wait >> board & 1) {
                        int64_t when = free_at(warp, board, 0);
                        if (when > earliest) earliest = when;
                    }
                if (step->kind == WAIT_GROUP) {
                    int64_t when = free_at(warp, step->unit, step->keep);
                    if (when > earliest) earliest = when;
                }
                int64_t *pipe = &pipe_free[part][step->pipe];
                if (step->pipe == FMA && (set->fma_pipes == 1 || pipe_free[part][HEAVY] < *pipe))
                    pipe = &pipe_free[part][HEAVY]; /* whichever of the two is free first */
                if (step->pipe != CONTROL && *pipe > earliest) earliest = *pipe;
                if (earliest > now) {
                    if (earliest < next) next = earliest;
                    continue;
                }
                for (int board = 0; board < SCOREBOARDS; board++)
                    if (step->wait >> board & 1) warp->count[board] = 0;
                *pipe = now + step->interval;
                issued++;
                any = 1;
                int64_t done = now + step->latency, taken = now + 16;
                if (step->kind >= LOAD_L1 && step->kind <= ON_CHIP) {
                    if (unit < now) unit = now;
                    unit += step->unit;
                    int64_t sent = (int64_t)unit;
                    taken = sent + 16;
                    done = sent + step->latency;
                    if (step->kind == LOAD_SHARED || step->kind == LOAD_DRAM) {
                        int far = step->kind == LOAD_DRAM || warp->first_wave;
                        int64_t from_l2 = served(&l2, sent, step->l2, set->l2_bytes) + set->l2;
                        int64_t from_dram = served(&dram, sent, step->dram, set->dram_bytes) + (far ? set->dram : 0);
                        done = from_l2 > from_dram ? from_l2 : from_dram;
                    } else if (step->kind == STORE) {
                        served(&l2, sent, step->l2, set->l2_bytes);
                        served(&dram, sent, step->dram, set->dram_bytes);
                    }
                }
                if (step->asynchronous && done > warp->group) warp->group = done;
                if (step->kind == GROUP) done = warp->group > done ? warp->group : done;
                release(warp, step->write, done);
                release(warp, step->read, taken);
                warp->ready = now + (step->stall ? step->stall : 1);
                latest[part] = (id - part) / PARTITIONS;
                if (step->kind == BARRIER) {
                    warp->waits = 1;
                    arrived[slot]++;
                }
                if (++warp->at == warp->length) {
                    warp->active = 0;
                    ended[slot]++;
                }
                if (arrived[slot] && arrived[slot] + ended[slot] == set->warps) {
                    arrived[slot] = 0;
                    for (int k = 0; k < set->warps; k++) {
                        Warp *other = &warps[slot * set->warps + k];
                        if (other->waits && other->ready < now + set->barrier) other->ready = now + set->barrier;
                        other->waits = 0;
                    }
                }
                if (ended[slot] == set->warps) {
                    finished++;
                    if (started < set->programs) {
                        started++;
                        ended[slot] = 0;
                        for (int k = 0; k < set->warps; k++)
                            start(&warps[slot * set->warps + k], traces[k], lengths[k], now + set->launch, 0);
                    } else {
                        ended[slot] = -1;
                    }
                }
                break;
            }
        }
        if (!any && next == NEVER) break; /* no warp can go on: a barrier that not all reach */
        now = any ? now + 1 : next;
    }
    double end = now;
    if (dram > end) end = dram; /* what was stored is on its way */
    if (l2 > end) end = l2;
    if (unit > end) end = unit;
    result->cycles = end;
    result->issued = issued;
    free(warps);
    free(arrived);
    free(ended);
    return finished < set->programs ? 2 : 0;
}
