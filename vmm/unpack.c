/*
 * unpack.c: the compressed payload of a bzImage, natively: of a Debian boot's instructions three quarters are the guest
 * unpacking itself.
 */
#include "vmm.h"

#include <stdlib.h>
#include <string.h>

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

enum format { GZIP, XZ, LZMA, ZSTD, LZ4 };

static const struct {
	const char *name;
	uint8_t magic[6];
	unsigned n;
	enum format format;
} formats[] = {
        {"gzip", {0x1f, 0x8b}, 2, GZIP},           {"xz", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, XZ},
        {"lzma", {0x5d, 0, 0}, 3, LZMA},           {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4, ZSTD},
        {"lz4", {0x02, 0x21, 0x4c, 0x18}, 4, LZ4},
};

static int find_format(const uint8_t *data, size_t size)
{
	for (unsigned n = 0; n < sizeof(formats) / sizeof(formats[0]); n++)
		if (size >= formats[n].n && memcmp(data, formats[n].magic, formats[n].n) == 0)
			return (int)n;
	return -1;
}

const char *unpack_format(const uint8_t *data, size_t size)
{
	int n = find_format(data, size);

	return n < 0 ? NULL : formats[n].name;
}

/* A growing output block. */
struct block {
	uint8_t *p;
	size_t size, used;
};

#define BLOCK_MAX (1 * GiB)

static bool block_room(struct block *b, size_t more)
{
	size_t size = b->size ? b->size : 64 * MiB;
	uint8_t *p;

	if (b->size - b->used >= more)
		return true;
	while (size - b->used < more)
		size *= 2;
	if (size > BLOCK_MAX)
		return false;
	p = realloc(b->p, size);
	if (!p)
		return false;
	b->p = p;
	b->size = size;
	return true;
}

static bool gunzip(const uint8_t *data, size_t size, struct block *b)
{
	z_stream z = {.next_in = (uint8_t *)(uintptr_t)data, .avail_in = (uInt)size};
	int rc;

	if (inflateInit2(&z, 15 + 16) != Z_OK)
		return false;
	do {
		if (!block_room(b, MiB)) {
			rc = Z_MEM_ERROR;
			break;
		}
		z.next_out = b->p + b->used;
		z.avail_out = MiB;
		rc = inflate(&z, Z_NO_FLUSH);
		b->used += MiB - z.avail_out;
	} while (rc == Z_OK);
	inflateEnd(&z);
	return rc == Z_STREAM_END;
}

static bool unlzma(const uint8_t *data, size_t size, struct block *b, bool xz)
{
	lzma_stream s = LZMA_STREAM_INIT;
	lzma_ret rc = xz ? lzma_stream_decoder(&s, UINT64_MAX, 0) : lzma_alone_decoder(&s, UINT64_MAX);

	s.next_in = data;
	s.avail_in = size;
	while (rc == LZMA_OK) {
		if (!block_room(b, MiB))
			break;
		s.next_out = b->p + b->used;
		s.avail_out = MiB;
		rc = lzma_code(&s, LZMA_RUN);
		b->used += MiB - s.avail_out;
		if (rc == LZMA_OK && s.avail_out && !s.avail_in)
			break;
	}
	lzma_end(&s);
	return rc == LZMA_STREAM_END;
}

static bool unzstd(const uint8_t *data, size_t size, struct block *b)
{
	ZSTD_DStream *s = ZSTD_createDStream();
	ZSTD_inBuffer in = {.src = data, .size = size};
	size_t left = 1;

	while (s && left) {
		ZSTD_outBuffer out;

		if (!block_room(b, MiB))
			break;
		out = (ZSTD_outBuffer){.dst = b->p + b->used, .size = MiB};
		left = ZSTD_decompressStream(s, &out, &in);
		if (ZSTD_isError(left))
			break;
		b->used += out.pos;
		if (left && in.pos == in.size && out.pos < out.size)
			break;
	}
	ZSTD_freeDStream(s);
	return left == 0;
}

/* The kernel's use of LZ4 is the legacy frame: blocks of 8 MiB, each with its size before it. */
static bool unlz4(const uint8_t *data, size_t size, struct block *b)
{
	size_t at = 4;

	while (at + 4 <= size) {
		uint32_t n;
		int got;

		memcpy(&n, data + at, 4);
		at += 4;
		/* What is left is the unpacked size, which the kernel's build appends. */
		if (at == size)
			return true;
		if (n > size - at || !block_room(b, 8 * MiB))
			return false;
		got = LZ4_decompress_safe((const char *)data + at, (char *)b->p + b->used, (int)n, (int)(8 * MiB));
		if (got < 0)
			return false;
		b->used += (size_t)got;
		at += n;
	}
	return at == size;
}

uint8_t *unpack(const uint8_t *data, size_t size, size_t *out_size, const char **why)
{
	int n = find_format(data, size);
	struct block b = {0};
	bool ok = false;

	if (n < 0) {
		*why = "its payload is packed in a way devkvm cannot unpack; --no-unpack lets the guest do it";
		return NULL;
	}
	switch (formats[n].format) {
	case GZIP:
		ok = gunzip(data, size, &b);
		break;
	case XZ:
	case LZMA:
		ok = unlzma(data, size, &b, formats[n].format == XZ);
		break;
	case ZSTD:
		ok = unzstd(data, size, &b);
		break;
	case LZ4:
		ok = unlz4(data, size, &b);
		break;
	}
	if (!ok) {
		free(b.p);
		*why = "its payload is damaged or cut short";
		return NULL;
	}
	*out_size = b.used;
	return b.p;
}
