# SPDX-License-Identifier: Apache-2.0
# `make demo` shows conenat at work, `make test` runs every test. Both install what they lack.

PREFIX    ?= /usr/local
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TESTFLAGS ?=
# For test-vm: a kernel of `bin/vmtest list`, and the packages whose tests run there.
KERNEL    ?= 6.12
VMTESTS   ?= ./bpf ./dataplane ./tests/prog

# Packages whose tests need no root, or skip what does.
UNIT := $(addsuffix /...,$(wildcard ./bpf ./dataplane ./control ./cmd ./vmtest ./tests/lint ./tests/oracle ./tests/packets))
C_FILES   = $(wildcard bpf/*.c bpf/*.h)
GENERATED = bpf/nat_bpfel.go bpf/nat_bpfel.o

# `su` on Debian leaves out sbin, and a Go unpacked by hand is on no path.
export PATH    := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export GOFLAGS ?= -buildvcs=false

need_root = @[ "$$(id -u)" = 0 ] || { echo "make $@ needs root, for network namespaces and eBPF: sudo make $@" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-vm test-vm-all build install generate generate-check lint fmt fmt-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

demo: ## show Docker's NAT turn symmetric and conenat stay a cone, with real packets (root)
	$(need_root)
	@.ci/install-packages demo
	@$(MAKE) --no-print-directory build
	@go build -o bin/demo ./tests/demo
	@bin/demo

test: ## run every test, with real packets and a real dockerd (root)
	$(need_root)
	@.ci/install-packages test
	@go build ./...
	go test -count=1 -p 1 -timeout 30m $(TESTFLAGS) ./...

test-unit: ## run the tests that need no root
	@.ci/install-packages unit
	go test -count=1 -short $(TESTFLAGS) $(UNIT)

test-vm: ## run the tests of VMTESTS on another kernel, KERNEL=6.1, in a virtual machine
	@.ci/install-packages vm
	@go build -o bin/vmtest ./vmtest
	bin/vmtest test --kernel $(KERNEL) $(VMTESTS) -- $(TESTFLAGS)

test-vm-all: ## run them on every supported kernel
	@$(MAKE) --no-print-directory test-vm KERNEL=all

build: ## build bin/conenat
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/conenat ./cmd/conenat

install: build ## install conenat to PREFIX (/usr/local)
	install -D -m 755 bin/conenat $(DESTDIR)$(PREFIX)/bin/conenat

generate: ## compile the C and write its Go types anew (clang-19)
	@.ci/install-packages generate
	go generate ./bpf

generate-check: generate ## fail if the committed objects and types are not what generate writes
	@git ls-files --error-unmatch $(GENERATED) >/dev/null
	git --no-pager diff --exit-code --stat -- $(GENERATED)

lint: fmt-check ## check the format, go vet, staticcheck and the project's own rules (tests/lint)
	go vet ./...
	go tool staticcheck -checks 'all,-QF*,-ST1003' ./...
	go test -count=1 ./tests/lint

fmt: ## format the Go and the C
	@.ci/install-packages fmt
	gofmt -w .
	$(if $(C_FILES),clang-format-19 -i $(C_FILES))

fmt-check: ## show what fmt would change, and fail if that is anything
	@.ci/install-packages fmt
	@bad=$$(gofmt -d . && for f in $(C_FILES); do clang-format-19 $$f | diff -u $$f - || true; done) && \
	[ -z "$$bad" ] || { echo "$$bad"; echo "run 'make fmt'" >&2; exit 1; }

clean: ## remove what the build made
	rm -rf bin
