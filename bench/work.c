/*
 * work.c: the workloads of `make bench`, one static program that runs natively and as a guest's user code. Each prints
 * "BENCH name seconds" by the monotonic clock, and checks its own result.
 *
 *   work [NAME...]      all, or those named
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <wmmintrin.h>
#include <zlib.h>

static uint64_t seed = 88172645463325252ull;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void must(int ok, const char *what)
{
	if (!ok) {
		printf("BENCH-WRONG %s\n", what);
		exit(1);
	}
}

static void integer_loop(void)
{
	uint32_t x = 1;

	for (unsigned n = 0; n < 60000000; n++) {
		x = x * 1664525 + 1013904223;
		x ^= x >> 13;
		__asm__ volatile("" : "+r"(x));
	}
	must(x != 0, "integer_loop");
}

static __attribute__((noinline)) unsigned fib(unsigned n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static void recursion(void)
{
	must(fib(37) == 24157817, "recursion");
}

static void sort(int *a, int n)
{
	while (n > 1) {
		int pivot = a[(n - 1) / 2], i = -1, j = n;

		for (;;) {
			while (a[++i] < pivot)
				;
			while (a[--j] > pivot)
				;
			if (i >= j)
				break;
			int t = a[i];
			a[i] = a[j];
			a[j] = t;
		}
		sort(a, j + 1);
		a += j + 1;
		n -= j + 1;
	}
}

static void quicksort(void)
{
	enum { N = 800000 };
	int *a = malloc(N * sizeof(*a));

	for (int n = 0; n < N; n++)
		a[n] = (int)rnd();
	sort(a, N);
	for (int n = 1; n < N; n++)
		must(a[n - 1] <= a[n], "quicksort");
	free(a);
}

static void pointer_chase(void)
{
	enum { N = 1 << 16 };
	uint32_t *next = malloc(N * sizeof(*next)), at = 0;

	for (uint32_t n = 0; n < N; n++)
		next[n] = n;
	for (uint32_t n = N - 1; n > 0; n--) {
		uint32_t k = (uint32_t)(rnd() % n), t = next[n];

		next[n] = next[k];
		next[k] = t;
	}
	for (unsigned n = 0; n < 12000000; n++)
		at = next[at];
	must(at < N, "pointer_chase");
	free(next);
}

static void string_search(void)
{
	enum { N = 4 << 20 };
	char *text = malloc(N + 1);
	unsigned found = 0;

	for (int n = 0; n < N; n++)
		text[n] = "abcdefgh"[rnd() & 7];
	text[N] = 0;
	for (unsigned k = 0; k < 12; k++)
		for (char *p = text; (p = strstr(p, "hgfedc")) != NULL; p++)
			found++;
	must(found > 0, "string_search");
	free(text);
}

static void memory_copy(void)
{
	enum { N = 1 << 20 };
	char *a = malloc(N), *b = malloc(N);

	memset(a, 7, N);
	for (unsigned k = 0; k < 1200; k++) {
		memcpy(b, a, N);
		a[k] = b[k + 1];
	}
	must(b[5] == 7, "memory_copy");
	free(a);
	free(b);
}

static uint32_t ror(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

/* SHA-256 (FIPS 180-4); its constants are the fractional parts of cube roots, computed here. */
static void sha256_blocks(void)
{
	static uint32_t k[64];
	uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
	                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	uint8_t block[64] = {0};

	for (unsigned n = 0, p = 2; n < 64; p++) {
		unsigned d = 2;

		while (d * d <= p && p % d)
			d++;
		if (d * d > p)
			k[n++] = (uint32_t)(fmod(cbrt((double)p), 1.0) * 4294967296.0);
	}
	for (unsigned round = 0; round < 120000; round++) {
		uint32_t w[64], s[8];

		for (int t = 0; t < 16; t++)
			w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 |
			       (uint32_t)block[4 * t + 2] << 8 | block[4 * t + 3];
		for (int t = 16; t < 64; t++) {
			uint32_t s0 = ror(w[t - 15], 7) ^ ror(w[t - 15], 18) ^ w[t - 15] >> 3;
			uint32_t s1 = ror(w[t - 2], 17) ^ ror(w[t - 2], 19) ^ w[t - 2] >> 10;

			w[t] = w[t - 16] + s0 + w[t - 7] + s1;
		}
		memcpy(s, h, sizeof(s));
		for (int t = 0; t < 64; t++) {
			uint32_t t1 = s[7] + (ror(s[4], 6) ^ ror(s[4], 11) ^ ror(s[4], 25)) +
			              ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[t] + w[t];
			uint32_t t2 = (ror(s[0], 2) ^ ror(s[0], 13) ^ ror(s[0], 22)) +
			              ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

			memmove(s + 1, s, 28);
			s[4] += t1;
			s[0] = t1 + t2;
		}
		for (int n = 0; n < 8; n++)
			h[n] += s[n];
		block[round & 63] ^= (uint8_t)h[0];
	}
	must(h[0] | h[1], "sha256");
}

static void gzip_text(void)
{
	enum { N = 2 << 20 };
	unsigned char *text = malloc(N), *packed = malloc(N + 4096);
	uLongf size = N + 4096, back = N;

	for (int n = 0; n < N; n++)
		text[n] = (unsigned char)("etaoin shrdlu"[rnd() % 13]);
	must(compress2(packed, &size, text, N, 6) == Z_OK, "gzip");
	must(uncompress(text, &back, packed, size) == Z_OK && back == N, "gunzip");
	free(text);
	free(packed);
}

/* In double by SSE, in long double by x87. */
#define NBODY(name, T, root, steps)                                                                                    \
	static void name(void)                                                                                         \
	{                                                                                                              \
		enum { N = 5 };                                                                                        \
		T p[N][3], v[N][3], m[N];                                                                              \
                                                                                                                       \
		for (int i = 0; i < N; i++) {                                                                          \
			m[i] = (T)1 / (i + 1);                                                                         \
			for (int c = 0; c < 3; c++) {                                                                  \
				p[i][c] = (T)(rnd() % 1000) / 100;                                                     \
				v[i][c] = (T)(rnd() % 1000) / 10000;                                                   \
			}                                                                                              \
		}                                                                                                      \
		for (int step = 0; step < steps; step++) {                                                             \
			for (int i = 0; i < N; i++)                                                                    \
				for (int j = i + 1; j < N; j++) {                                                      \
					T d[3], r2 = (T)0.01, f;                                                       \
                                                                                                                       \
					for (int c = 0; c < 3; c++) {                                                  \
						d[c] = p[i][c] - p[j][c];                                              \
						r2 += d[c] * d[c];                                                     \
					}                                                                              \
					f = (T)0.001 / (r2 * root(r2));                                                \
					for (int c = 0; c < 3; c++) {                                                  \
						v[i][c] -= d[c] * m[j] * f;                                            \
						v[j][c] += d[c] * m[i] * f;                                            \
					}                                                                              \
				}                                                                                      \
			for (int i = 0; i < N; i++)                                                                    \
				for (int c = 0; c < 3; c++)                                                            \
					p[i][c] += (T)0.001 * v[i][c];                                                 \
		}                                                                                                      \
		must(isfinite(p[0][0]), #name);                                                                        \
	}

NBODY(nbody, double, sqrt, 200000)
NBODY(x87_nbody, long double, sqrtl, 60000)

static void matrix(void)
{
	enum { N = 220 };
	static double a[N][N], b[N][N], c[N][N];

	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			a[i][j] = i + j;
			b[i][j] = i - j;
		}
	for (int k = 0; k < 4; k++)
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double s = 0;

				for (int x = 0; x < N; x++)
					s += a[i][x] * b[x][j];
				c[i][j] = s;
			}
	must(c[1][1] != 0, "matrix");
}

static __attribute__((target("aes,sse4.1"))) void simd_aes(void)
{
	__m128i x = _mm_set_epi32(1, 2, 3, 4), key = _mm_set_epi32(5, 6, 7, 8);

	for (unsigned n = 0; n < 6000000; n++) {
		x = _mm_aesenc_si128(x, key);
		key = _mm_xor_si128(_mm_shuffle_epi32(key, 0x39), x);
		x = _mm_add_epi32(x, key);
	}
	must(_mm_cvtsi128_si32(x) != 0, "simd_aes");
}

static void shell_loop(void)
{
	must(system("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done") == 0, "shell_loop");
}

static void system_calls(void)
{
	for (unsigned n = 0; n < 300000; n++)
		must(syscall(SYS_getppid) >= 0, "system_calls");
}

static void pipe_ping_pong(void)
{
	int there[2], back[2];
	char c = 0;

	must(pipe(there) == 0 && pipe(back) == 0, "pipe");
	if (fork() == 0) {
		close(there[1]);
		while (read(there[0], &c, 1) == 1)
			must(write(back[1], &c, 1) == 1, "pong");
		_exit(0);
	}
	for (unsigned n = 0; n < 20000; n++) {
		must(write(there[1], &c, 1) == 1, "ping");
		must(read(back[0], &c, 1) == 1, "pong");
	}
	close(there[1]);
	wait(NULL);
}

static void page_faults(void)
{
	enum { PAGES = 4096 };

	for (unsigned k = 0; k < 10; k++) {
		char *p = mmap(NULL, PAGES << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		for (unsigned n = 0; n < PAGES; n++)
			p[n << 12] = 1;
		munmap(p, PAGES << 12);
	}
}

static void forks(void)
{
	for (unsigned n = 0; n < 1000; n++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		must(waitpid(pid, NULL, 0) == pid, "fork");
	}
}

static void exec_often(const char *program)
{
	for (unsigned n = 0; n < 300; n++) {
		pid_t pid = vfork();
		int status;

		if (pid == 0) {
			execl(program, "work", "nothing", NULL);
			_exit(1);
		}
		must(waitpid(pid, &status, 0) == pid && status == 0, program);
	}
}

static void fork_exec(void)
{
	exec_often("/proc/self/exe");
}

/* A position-independent program, which begins at another random address each time: `work-pie` beside this one. */
static void fork_exec_pie(void)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 5);

	must(n > 0, "readlink");
	memcpy(path + n, "-pie", 5);
	exec_often(path);
}

static unsigned walk(const char *path, unsigned depth)
{
	DIR *d = opendir(path);
	struct dirent *e;
	unsigned n = 0;

	while (d && depth && (e = readdir(d)) != NULL) {
		char sub[512];

		if (e->d_name[0] == '.')
			continue;
		n++;
		if (e->d_type == DT_DIR && snprintf(sub, sizeof(sub), "%s/%s", path, e->d_name) < (int)sizeof(sub))
			n += walk(sub, depth - 1);
	}
	if (d)
		closedir(d);
	return n;
}

/* A directory walk; how many entries there are differs from kernel to kernel, so the time is for 30,000 of them. */
static void find_files(void)
{
	unsigned n = 0;

	while (n < 30000) {
		unsigned more = walk("/sys/kernel", 6) + walk("/proc/self", 3) + walk("/sys/class", 2);

		must(more > 0, "find");
		n += more;
	}
}

static void *thread_work(void *arg)
{
	uint64_t *x = arg;

	for (unsigned n = 0; n < 10000000; n++)
		*x = *x * 6364136223846793005ull + 1442695040888963407ull;
	return NULL;
}

static void two_threads(void)
{
	pthread_t t[2];
	static uint64_t x[2][64];

	for (int n = 0; n < 2; n++)
		must(pthread_create(&t[n], NULL, thread_work, x[n]) == 0, "threads");
	for (int n = 0; n < 2; n++)
		pthread_join(t[n], NULL);
	must(x[0][0] == x[1][0], "threads");
}

static const struct {
	const char *name;
	void (*run)(void);
} works[] = {
        {"integer-loop", integer_loop},
        {"recursion", recursion},
        {"quicksort", quicksort},
        {"pointer-chase", pointer_chase},
        {"string-search", string_search},
        {"memory-copy", memory_copy},
        {"sha256", sha256_blocks},
        {"gzip", gzip_text},
        {"n-body", nbody},
        {"x87-n-body", x87_nbody},
        {"matrix", matrix},
        {"simd-aes", simd_aes},
        {"shell-loop", shell_loop},
        {"system-calls", system_calls},
        {"pipe", pipe_ping_pong},
        {"page-faults", page_faults},
        {"fork", forks},
        {"fork-exec", fork_exec},
        {"fork-exec-pie", fork_exec_pie},
        {"find", find_files},
        {"two-threads", two_threads},
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "nothing") == 0)
		return 0;
	for (unsigned n = 0; n < sizeof(works) / sizeof(works[0]); n++) {
		int chosen = argc < 2;
		double start;

		for (int k = 1; k < argc; k++)
			chosen |= strcmp(argv[k], works[n].name) == 0;
		if (!chosen)
			continue;
		start = now();
		works[n].run();
		printf("BENCH %s %.6f\n", works[n].name, now() - start);
		fflush(stdout);
	}
	return 0;
}
