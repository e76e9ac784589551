/* A stand-in for libnvidia-ml.so.1: four GPUs whose state lies in a file, so that a test can see and disturb them.
 *
 * It exports what the binding calls, with NVML's signatures and error codes. The file is made by nvml_standin.py, which
 * knows the same layout. NVML_STANDIN_STATE names it.
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };

struct gpu {
    uint32_t locked_mhz; /* 0: not locked */
    uint32_t limit_mw;
    uint32_t locks;  /* calls */
    uint32_t resets;
    uint32_t delay_ms;     /* of every change */
    uint32_t fault_all;    /* error codes; 0: none */
    uint32_t fault_change;
    uint32_t fault_energy;
    uint32_t fault_reset;
    uint32_t overlaps; /* changes that met another one under way: the caller did not serialise */
    uint32_t fault_limit;  /* of setting the power limit */
    uint32_t fault_list;   /* of listing clocks */
    uint32_t fault_pstate; /* of the lowest and highest clock */
    uint32_t mig;
    uint32_t processes;  /* that compute */
    uint32_t instant_mw; /* 0: no such field */
    uint32_t capability; /* 80: a GA100 */
    uint32_t persistence;
    uint32_t used_mib;
};

struct state {
    uint32_t fault_init;
    uint32_t gpus;
    uint32_t changing;
    uint32_t unused;
    struct gpu gpu[4];
};

static struct state *state;
static unsigned long host; /* the file's number: tests that run beside each other have GPUs of their own */

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int index_of(const struct gpu *gpu) { return (int)(gpu - state->gpu); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("NVML_STANDIN_STATE");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return DRIVER_NOT_LOADED;
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    struct stat status;
    if (!fstat(file, &status)) host = (unsigned long)status.st_ino;
    close(file);
    if (state == MAP_FAILED) return DRIVER_NOT_LOADED;
    return (int)state->fault_init;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "stand-in error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = state->gpus;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **gpu) {
    if (index >= state->gpus) return INVALID_ARGUMENT;
    *gpu = &state->gpu[index];
    return (int)(*gpu)->fault_all;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *text, unsigned length) {
    snprintf(text, length, "GPU-%08lx-0000-0000-0000-%012d", host & 0xffffffff, index_of(gpu));
    return (int)gpu->fault_all;
}

int nvmlDeviceGetName(struct gpu *gpu, char *text, unsigned length) {
    snprintf(text, length, "Stand-in A100");
    return (int)gpu->fault_all;
}

int nvmlDeviceGetSupportedMemoryClocks(struct gpu *gpu, unsigned *count, unsigned *mhz) {
    if (gpu->fault_all || gpu->fault_list) return (int)(gpu->fault_all ? gpu->fault_all : gpu->fault_list);
    if (!mhz) {
        *count = 1;
        return INSUFFICIENT_SIZE;
    }
    mhz[0] = 1593;
    return SUCCESS;
}

int nvmlDeviceGetSupportedGraphicsClocks(struct gpu *gpu, unsigned memory_mhz, unsigned *count, unsigned *mhz) {
    if (gpu->fault_all) return (int)gpu->fault_all;
    if (memory_mhz != 1593) return INVALID_ARGUMENT;
    if (!mhz) {
        *count = 81;
        return INSUFFICIENT_SIZE;
    }
    for (unsigned i = 0; i < 81; i++) mhz[i] = 1410 - 15 * i; /* falling, as NVML gives them */
    return SUCCESS;
}

static int begin_change(struct gpu *gpu) {
    if (__atomic_exchange_n(&state->changing, 1, __ATOMIC_SEQ_CST)) gpu->overlaps++;
    if (gpu->delay_ms) {
        struct timespec pause = {gpu->delay_ms / 1000, (long)(gpu->delay_ms % 1000) * 1000000};
        nanosleep(&pause, NULL);
    }
    return (int)(gpu->fault_all ? gpu->fault_all : gpu->fault_change);
}

static int end_change(int code) {
    __atomic_store_n(&state->changing, 0, __ATOMIC_SEQ_CST);
    return code;
}

int nvmlDeviceSetGpuLockedClocks(struct gpu *gpu, unsigned low_mhz, unsigned high_mhz) {
    int code = begin_change(gpu);
    gpu->locks++;
    if (!code && (low_mhz != high_mhz || low_mhz < 210 || low_mhz > 1410)) code = INVALID_ARGUMENT;
    if (!code) gpu->locked_mhz = low_mhz;
    return end_change(code);
}

int nvmlDeviceResetGpuLockedClocks(struct gpu *gpu) {
    int code = begin_change(gpu);
    gpu->resets++;
    if (!code) code = (int)gpu->fault_reset;
    if (!code) gpu->locked_mhz = 0;
    return end_change(code);
}

int nvmlDeviceGetPowerManagementLimit(struct gpu *gpu, unsigned *mw) {
    *mw = gpu->limit_mw;
    return (int)gpu->fault_all;
}

int nvmlDeviceGetPowerManagementDefaultLimit(struct gpu *gpu, unsigned *mw) {
    *mw = 400000;
    return (int)gpu->fault_all;
}

int nvmlDeviceGetPowerManagementLimitConstraints(struct gpu *gpu, unsigned *low_mw, unsigned *high_mw) {
    *low_mw = 100000;
    *high_mw = 400000;
    return (int)gpu->fault_all;
}

int nvmlDeviceSetPowerManagementLimit(struct gpu *gpu, unsigned mw) {
    int code = begin_change(gpu);
    if (!code) code = (int)gpu->fault_limit;
    if (!code && (mw < 100000 || mw > 400000)) code = INVALID_ARGUMENT;
    if (!code) gpu->limit_mw = mw;
    return end_change(code);
}

int nvmlDeviceGetPowerUsage(struct gpu *gpu, unsigned *mw) {
    *mw = 100000;
    return (int)gpu->fault_all;
}

int nvmlDeviceGetTotalEnergyConsumption(struct gpu *gpu, unsigned long long *mj) {
    *mj = now_ms() * 100; /* 100 W */
    return (int)(gpu->fault_all ? gpu->fault_all : gpu->fault_energy);
}

int nvmlDeviceGetClockInfo(struct gpu *gpu, int kind, unsigned *mhz) {
    if (kind != 1) return INVALID_ARGUMENT;
    *mhz = gpu->locked_mhz ? gpu->locked_mhz : 1410;
    return (int)gpu->fault_all;
}

int nvmlDeviceGetMinMaxClockOfPState(struct gpu *gpu, int kind, int pstate, unsigned *low_mhz, unsigned *high_mhz) {
    if (kind != 0 || pstate != 0) return INVALID_ARGUMENT;
    *low_mhz = 210;
    *high_mhz = 1410;
    return (int)(gpu->fault_all ? gpu->fault_all : gpu->fault_pstate);
}

struct field {
    uint32_t id, scope;
    int64_t time_us, latency_us;
    uint32_t type, code;
    union {
        double real;
        unsigned whole;
    } value;
};

int nvmlDeviceGetFieldValues(struct gpu *gpu, int count, struct field *fields) {
    for (int i = 0; i < count; i++) {
        fields[i].type = 1;
        fields[i].code = fields[i].id == 186 && gpu->instant_mw ? SUCCESS : NOT_SUPPORTED;
        fields[i].value.whole = gpu->instant_mw;
    }
    return (int)gpu->fault_all;
}

int nvmlDeviceGetCudaComputeCapability(struct gpu *gpu, int *major, int *minor) {
    *major = (int)gpu->capability / 10;
    *minor = (int)gpu->capability % 10;
    return (int)gpu->fault_all;
}

int nvmlDeviceGetMigMode(struct gpu *gpu, unsigned *current, unsigned *pending) {
    *current = *pending = gpu->mig;
    return (int)gpu->fault_all;
}

struct process {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *gpu, unsigned *count, struct process *processes) {
    if (gpu->fault_all) return (int)gpu->fault_all;
    if (!processes) {
        *count = gpu->processes;
        return gpu->processes ? INSUFFICIENT_SIZE : SUCCESS;
    }
    *count = gpu->processes;
    for (unsigned i = 0; i < gpu->processes; i++) processes[i] = (struct process){4711 + i, 1 << 30, ~0u, ~0u};
    return SUCCESS;
}

int nvmlDeviceGetPersistenceMode(struct gpu *gpu, unsigned *mode) {
    *mode = gpu->persistence;
    return (int)gpu->fault_all;
}

struct memory {
    unsigned long long total, free, used;
};

int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory *memory) {
    memory->total = 81920ull << 20;
    memory->used = (unsigned long long)gpu->used_mib << 20;
    memory->free = memory->total - memory->used;
    return (int)gpu->fault_all;
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "550.54.15");
    return SUCCESS;
}
