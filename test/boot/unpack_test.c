/*
 * unpack_test.c: vmm/unpack.c on every format a kernel may be packed in, whole, cut short and damaged.
 */
#include <stdlib.h>

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include "../../vmm/vmm.h"
#include "test.h"

#define SIZE (9 * MiB) /* more than one LZ4 block */

static uint8_t *plain, *packed;
static const size_t room = 2 * SIZE;

static void fill(void)
{
	uint64_t x = 1;

	plain = malloc(SIZE);
	packed = malloc(room);
	for (size_t n = 0; n < SIZE; n++) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		plain[n] = (uint8_t)("kernel text, more or less "[(x >> 40) % 26]);
	}
}

/* Unpacks whole, then cut, then with a byte changed in the middle (which need not be noticed, but must not crash). */
static void check(const char *name, size_t size)
{
	size_t got;
	const char *why = NULL, *format = unpack_format(packed, size);
	uint8_t *out = unpack(packed, size, &got, &why);

	CHECK(format && strcmp(format, name) == 0);
	CHECK(out != NULL);
	if (out) {
		CHECK_EQ(got, SIZE);
		CHECK_EQ(memcmp(out, plain, SIZE), 0);
	}
	free(out);
	out = unpack(packed, size / 2, &got, &why);
	CHECK(out == NULL);
	CHECK(why != NULL);
	free(out);
	packed[size / 2] ^= 0x55;
	packed[size / 2 + 1] ^= 0xaa;
	free(unpack(packed, size, &got, &why));
}

TEST(gzip)
{
	z_stream z = {.next_in = plain, .avail_in = SIZE, .next_out = packed, .avail_out = room};

	CHECK_EQ(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
	CHECK_EQ(deflate(&z, Z_FINISH), Z_STREAM_END);
	check("gzip", z.total_out);
	deflateEnd(&z);
}

TEST(xz_with_trailing_size)
{
	size_t size = 0;
	uint32_t length = SIZE;

	CHECK_EQ(lzma_easy_buffer_encode(1, LZMA_CHECK_CRC32, NULL, plain, SIZE, packed, &size, room), LZMA_OK);
	memcpy(packed + size, &length, 4); /* the kernel's build appends it */
	check("xz", size + 4);
}

TEST(lzma)
{
	lzma_options_lzma options;
	lzma_stream s = LZMA_STREAM_INIT;

	lzma_lzma_preset(&options, 1);
	CHECK_EQ(lzma_alone_encoder(&s, &options), LZMA_OK);
	s.next_in = plain;
	s.avail_in = SIZE;
	s.next_out = packed;
	s.avail_out = room;
	CHECK_EQ(lzma_code(&s, LZMA_FINISH), LZMA_STREAM_END);
	check("lzma", s.total_out);
	lzma_end(&s);
}

TEST(zstd)
{
	size_t size = ZSTD_compress(packed, room, plain, SIZE, 3);

	CHECK(!ZSTD_isError(size));
	check("zstd", size);
}

TEST(lz4_legacy_frame)
{
	size_t size = 4;
	uint32_t length = SIZE;

	memcpy(packed, "\x02\x21\x4c\x18", 4);
	for (size_t at = 0; at < SIZE; at += 8 * MiB) {
		size_t n = SIZE - at < 8 * MiB ? SIZE - at : 8 * MiB;
		int got = LZ4_compress_default((char *)plain + at, (char *)packed + size + 4, (int)n,
		                               (int)(room - size - 4));
		uint32_t block = (uint32_t)got;

		CHECK(got > 0);
		memcpy(packed + size, &block, 4);
		size += 4 + block;
	}
	memcpy(packed + size, &length, 4);
	check("lz4", size + 4);
}

TEST(unknown)
{
	static const uint8_t junk[64] = "BZh9 is not among them";
	const char *why = NULL;
	size_t got;

	CHECK(unpack_format(junk, sizeof(junk)) == NULL);
	CHECK(unpack(junk, sizeof(junk), &got, &why) == NULL);
	CHECK(why != NULL);
	CHECK(unpack_format(junk, 1) == NULL);
}

int main(int argc, char **argv)
{
	int rc;

	fill();
	rc = test_main(argc, argv);
	free(plain);
	free(packed);
	return rc;
}
