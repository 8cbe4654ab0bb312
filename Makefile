# Levee. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
GO ?= go
TOOL := $(GO) tool -modfile=tools/go.mod
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help build bench demo test test-long test-unprivileged test-kernels torture race race-quick lint fmt generate check-generate cover fuzz setup clean \
	package release check-reproducible test-systemd test-newcomer vuln

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/levee; needs Go alone
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/levee ./cmd/levee

demo: build ## run the lab: floods with and without the shield, in under 60 s; needs root
	@$(GO) run ./scripts/preflight demo
	@$(GO) run ./scripts/lab -levee bin/levee

bench: build ## what a packet costs, beside others, and the control plane; QUICK=1 for whether it runs; needs root
	@$(GO) run ./scripts/preflight bench
	$(GO) run ./scripts/bench -levee bin/levee $(BENCHFLAGS)

# One package at a time: the floods of one would be the busy machine of another.
test: build ## run every test that needs no third-party software; needs root
	@$(GO) run ./scripts/preflight test
	$(GO) test -p 1 -timeout 15m ./...

test-long: build ## likewise, with limits over 10 s, floods of 10 million and more rounds; needs root
	@$(GO) run ./scripts/preflight test
	LEVEE_LONG=1 $(GO) test -p 1 -timeout 60m ./...

torture: build ## kill the daemon at every point of its life, fail its system calls, upgrade it under load; needs root
	@$(GO) run ./scripts/preflight torture
	$(GO) run ./scripts/torture -levee bin/levee $(TORTUREFLAGS)

test-unprivileged: ## run the tests that need neither root nor BPF
	LEVEE_UNPRIVILEGED=1 $(GO) test -timeout 10m ./...

UPDATE ?=
test-dashboard: ## put every query of the dashboard and the alerts to a real Prometheus; UPDATE=1 draws docs/dashboard.svg; needs root
	LEVEE_THIRDPARTY=1 $(GO) test -count 1 -timeout 5m ./scripts/dashboard $(if $(UPDATE),-update)

test-kernels: ## boot Debian's kernels in qemu and run the BPF and attach tests inside; UPDATE=1 keeps what is found
	$(GO) run ./scripts/kernels $(if $(UPDATE),-update) $(KERNELFLAGS)

race: ## the tests under the race detector; needs root and a C compiler
	$(GO) test -race -p 1 -timeout 20m ./...

# Where goroutines meet and no kernel is asked.
RACED := $(addprefix ./agent/,api audit client config events httpguard list metrics notify protect reconcile state)
race-quick: ## the race detector on the daemon's own packages, with their coverage; needs a C compiler
	$(GO) test -race -cover -short -timeout 10m $(RACED)

lint: ## golangci-lint with the import rules, clang-format, shellcheck
	$(TOOL) golangci-lint run ./...
	@scripts/check format
	@scripts/check shell

fmt: ## format Go and C
	gofmt -l -w $$(git ls-files '*.go')
	clang-format-19 -i $$(git ls-files '*.c' 'bpf/*.h' 'scripts/**/*.h')

generate: ## compile the BPF programs and generate their bindings; needs clang-19
	@scripts/check clang
	$(GO) generate ./...

check-generate: ## fail if the committed objects differ from what their sources give
	@scripts/check generate

cover: ## the tests' coverage, by package
	$(GO) test -p 1 -timeout 15m -coverprofile=coverage.out ./...
	@$(GO) tool cover -func=coverage.out | tail -n 1

FUZZTIME ?= 60s
fuzz: ## every fuzz target for FUZZTIME each
	@scripts/check fuzz $(FUZZTIME)

package: ## deb, rpm, tarball, SBOM and checksums in dist/; needs Go alone
	@scripts/package

release: ## likewise, of a clean tree, with a statement of provenance
	@scripts/check clean
	@scripts/package
	@scripts/check provenance

check-reproducible: ## build everything twice, in other places, and compare the bytes
	@scripts/check reproducible

test-systemd: ## the package in a real systemd: installed, used, upgraded under flood, rebooted, removed; needs root
	LEVEE_SYSTEMD=1 $(GO) test -count=1 -timeout 15m -v -run TestService ./scripts/systemd

test-newcomer: ## the commands of README.md, and no others, on a bare Debian 12; needs root and the network
	@scripts/newcomer

vuln: ## known vulnerabilities in what is linked, where their database can be reached
	@scripts/check vuln

setup: ## install what development needs from Debian's packages; needs root
	@scripts/setup

clean: ## remove what was built
	rm -rf bin dist coverage.out
