# test.mk: builds and runs the tests. Included by the Makefile.
#
# Every program T in TEST_PROGRAMS is test/…/T.c and links libdevkvm.a; suites say how each is run.

TEST_CFLAGS := -Iinclude -Iinclude/2006 -Itest/lib -Isrc

check: check-quick check-boot

.PHONY: check check-quick check-boot
