# SPDX-License-Identifier: Apache-2.0
# `make demo` shows conenat at work, `make test` runs every test. Both install what they lack.

PREFIX    ?= /usr/local
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TESTFLAGS ?=
# For test-vm: a kernel of `bin/vmtest list`, packages, and pairs of network cards.
KERNEL    ?= 6.12
VMTESTS   ?= ./bpf ./dataplane/... ./control/... ./cmd/... \
	$(addprefix ./tests/,require topo probe docker rig prog fuzz rfc drivers figure3 demo judges e2e)
WIRES     ?= virtio-net-pci virtio-net-pci

# Packages whose tests need no root, or skip what does.
UNIT := $(addsuffix /...,./bpf ./dataplane ./control ./cmd ./vmtest \
	$(addprefix ./tests/,bench benchvm build cost lint oracle packets require))
C_FILES   = $(wildcard bpf/*.c bpf/*.h tests/bench/load/*.c)
GENERATED = $(wildcard bpf/nat*_bpfel.* tests/bench/load/*_bpfel.*)

# `su` on Debian leaves out sbin, and a Go unpacked by hand is on no path.
export PATH    := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export GOFLAGS ?= -buildvcs=false
need_root = @[ "$$(id -u)" = 0 ] || { echo "make $@ needs root, for network namespaces and eBPF: sudo make $@" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test conformance test-unit test-vm test-vm-all bench-vm cost cost-check verifier-budget vm-programs bench bench-full \
	build install generate generate-check lint fmt fmt-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

demo: ## show Docker's NAT turn symmetric and conenat stay a cone, with real packets (root)
	$(need_root)
	@.ci/install-packages demo
	@$(MAKE) --no-print-directory build && go build -o bin/demo ./tests/demo
	@bin/demo

test: ## run every test, with real packets and a real dockerd (root)
	$(need_root)
	@.ci/install-packages test && go build ./...
	go test -count=1 -p 1 -timeout 60m $(TESTFLAGS) ./...
conformance: ## run a test for each line of the RFCs, and print what holds (root)
	$(need_root)
	@.ci/install-packages test
	go -C tests/rfc test -count=1 -timeout 20m $(TESTFLAGS) -table
test-unit: ## run the tests that need no root
	@.ci/install-packages unit
	go test -count=1 -short $(TESTFLAGS) $(UNIT)

test-vm: vm-programs ## run the tests of VMTESTS on another kernel, KERNEL=6.1, in a virtual machine (root)
	CGO_ENABLED=0 bin/vmtest test --kernel $(KERNEL) --timeout 3h --env CONENAT_BINARIES=$(CURDIR)/bin/vm \
		$(addprefix --wire ,$(WIRES)) $(VMTESTS) -- -test.timeout=3h $(foreach flag,$(TESTFLAGS),'$(flag)')
test-vm-all: vm-programs ## run every test on every kernel, and have 5.10 refused (hours in software emulation)
	@.ci/test-matrix

bench: ## compare conenat, nftables, Docker and routing side by side, in some minutes (root; BENCHFLAGS=-h)
	$(need_root)
	@.ci/install-packages test && go run ./tests/bench/compare $(BENCHFLAGS)
bench-full: ## the same with all loads and figures, and write docs/benchmarks.md (root; hours)
	@$(MAKE) --no-print-directory bench BENCHFLAGS='-full $(BENCHFLAGS)'
bench-vm: vm-programs ## compare conenat, nftables and routing by the kernel's pktgen, in a virtual machine
	@go run ./tests/benchvm
cost: vm-programs ## count the instructions of a packet, and write them to the budget and to docs/cost.md
	@go run ./tests/cost update
cost-check: vm-programs ## count them, and fail where one has grown by more than 3 %
	@go run ./tests/cost check
verifier-budget: vm-programs ## have each kernel verify the programs, and write bpf/verifier-budget.yaml
	bin/vmtest test --kernel all ./bpf -- -run TestLoadsWithEveryConstant -v | tee bin/verifier-budget.log
	go test -count=1 ./bpf -run TestBudgetIsWhole -merge-budget $(CURDIR)/bin/verifier-budget.log
vm-programs: ## build what runs in a virtual machine: a guest in software emulation compiles very slowly
	@.ci/install-packages test vm
	@go build -o bin/vmtest ./vmtest
	@CGO_ENABLED=0 go build -o bin/vm/ ./cmd/conenat ./tests/cmd/... ./tests/demo github.com/pion/stun/v2/cmd/stun-nat-behaviour

build: ## build bin/conenat
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/conenat ./cmd/conenat
install: build ## install conenat to PREFIX (/usr/local)
	install -D -m 755 bin/conenat $(DESTDIR)$(PREFIX)/bin/conenat

generate: ## compile the C and write its Go types anew (clang-19)
	@.ci/install-packages generate
	go generate ./bpf ./tests/bench/load
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
