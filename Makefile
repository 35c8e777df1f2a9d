# SPDX-License-Identifier: MIT
# make demo    the main job, end to end, on this machine, in VMs where QEMU is; BACKEND=process without
# make test    all tests, the quick ones first
# make build   the programs, for this machine and every supported one
# make test-image   the small Linux guest that tests boot under QEMU
# make lint    formatting and static checks, the Mac's code and the workflows among them
# make check-darwin   the types of what only a Mac builds, on any machine
# make test-vz IMAGE=DIR   on a Mac with Apple silicon: the backend vz on real machines
# make bench   the figures; make bench ONLY=webhook,assign for some of them, ONLY=clone,boot,restore,cycle for those of VMs, ONLY=images,ready for those of images
# make sim     ten simulated days of all that goes wrong, for SEEDS (200) seeds from SEED (0) on
# make fuzz    every fuzz target for FUZZTIME (30s), one after the other

GO       ?= go
# All that is built here is built alike, by tests and tools too: what one has compiled, the
# others find in the cache. Objects are fetched by HTTP: the storage client's gRPC need not
# know the ways of service meshes, a third of what it is made of.
TAGS := disable_grpc_modules
export GOFLAGS := $(filter-out -trimpath -tags=%,$(shell $(GO) env GOFLAGS)) -trimpath -tags=$(TAGS)
export CGO_ENABLED ?= 0

PROGRAMS := minifleet minifleet-agent minifleet-vmm minifleet-guest
# Where there is Virtualization.framework, minifleet-vmm is built with it and signed.
MAC      := $(and $(filter Darwin,$(shell uname -s)),$(filter arm64,$(shell uname -m)))
SOURCES   = $(shell find . -name '*.go' -not -name '*_test.go') go.mod go.sum

GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 # with staticcheck v0.8.2
ACTIONLINT  := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

.PHONY: all demo programs runner crash-programs test-image image-for-tests testimage build test test-quick test-e2e lint check-darwin test-vz vmm sign bench sim fuzz generate clean

all: programs

programs: ## the programs for this machine, in bin/
	@mkdir -p bin
	$(GO) build -o bin/ $(addprefix ./cmd/,$(PROGRAMS))
	$(if $(MAC),$(MAKE) vmm)

VMM ?= bin/minifleet-vmm
vmm: ## minifleet-vmm as a Mac needs it: with cgo, and entitled to have machines
	CGO_ENABLED=1 $(GO) build -o $(VMM) ./cmd/minifleet-vmm
	$(MAKE) sign VMM=$(VMM)

sign: ## ad hoc, which is enough for the entitlement
	codesign --force --sign - --entitlements deploy/vmm.entitlements $(VMM)

runner: ## the runner client of the demo and the end-to-end tests, which is not ours
	@mkdir -p e2e/bin
	cd e2e && $(GO) build -o bin/runner ./runner

crash-programs: ## the programs that die where a test tells them to
	@mkdir -p e2e/bin/crash
	$(GO) build -tags crashpoints,$(TAGS) -o e2e/bin/crash/ $(addprefix ./cmd/,$(PROGRAMS))

# The images are e2e/bin/images/testlinux, and sshonly without minifleet-guest; the keys that
# log in to them are in e2e/bin/image-keys. Tests find them by internal/testimage. Packages
# are fetched once: to have newer ones, delete e2e/bin/packages.
test-image: testimage
	$(TESTIMAGE)

# Where images cannot be built, the tests that boot them are skipped, but not under CI.
image-for-tests: testimage
	$(TESTIMAGE) -optional

TESTIMAGE := e2e/bin/testimage -dir e2e/bin -guest e2e/bin/guest-programs/minifleet-guest -runner e2e/bin/guest-programs/runner
GUEST     := CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) build -buildvcs=false -ldflags '-s -w'

testimage:
	@mkdir -p e2e/bin/guest-programs
	$(GUEST) -o e2e/bin/guest-programs/ ./cmd/minifleet-guest
	cd e2e && $(GUEST) -o bin/guest-programs/ ./runner
	cd e2e && $(GO) build -buildvcs=false -o bin/testimage ./testimage

# Runners are VMs under QEMU where this machine can boot the test image, and ordinary
# processes elsewhere, which CI does not take for the same. BACKEND=qemu or BACKEND=process
# leaves no choice.
DEMO := bin/minifleet dev --demo

demo: programs runner
	@mkdir -p e2e/bin && cd e2e && $(GO) build -buildvcs=false -o bin/testimage ./testimage
	@case "$(BACKEND)" in \
	process) exec $(DEMO) --runner e2e/bin/runner $(ARGS) ;; \
	qemu) optional= ;; \
	'') optional=-optional ;; \
	*) echo "make demo: BACKEND is $(BACKEND): give qemu or process"; exit 1 ;; \
	esac; \
	if why=$$(e2e/bin/testimage -check 2>&1); then \
		$(MAKE) -s --no-print-directory test-image || { echo "make demo: there is no image to boot; BACKEND=process needs none"; exit 1; }; \
		exec $(DEMO) --image e2e/bin/images/testlinux $(ARGS); \
	fi; \
	[ -n "$$optional" ] && [ "$$CI" != true ] || { echo "make demo: no VM can be booted: $$why; BACKEND=process needs none"; exit 1; }; \
	echo "make demo: runners are ordinary processes here, not VMs under QEMU: $$why"; \
	exec $(DEMO) --runner e2e/bin/runner $(ARGS)

# The static programs cross-compile. A Mac's minifleet-vmm needs its SDK and is built on a
# Mac only: without cgo it would be one that runs no VM.
build: programs
	@set -e; for os in linux darwin; do for arch in amd64 arm64; do \
		programs="$(PROGRAMS)"; \
		if [ $$os = darwin ]; then programs="$(filter-out minifleet-vmm,$(PROGRAMS))"; fi; \
		echo "build $$os/$$arch: $$programs"; mkdir -p bin/$$os-$$arch; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -o bin/$$os-$$arch/ $$(printf './cmd/%s ' $$programs); \
	done; done
	$(if $(MAC),$(MAKE) vmm VMM=bin/darwin-arm64/minifleet-vmm,@echo "minifleet-vmm for darwin is left out: build and sign it on a Mac with Apple silicon (make build there)")

test: test-quick test-e2e

# The race detector needs cgo, and so a C compiler; the programs that tests build do without,
# but on a Mac, as those of a release. go vet has seen everything before. Nothing is taken from
# the cache of results: it does not know of the programs that tests build and start.
# SQLite is C that was translated: the detector finds nothing in it and takes a third of the time.
# Some tests wait for most of their time: so they are begun early, beside what is compiled.
TWICE = $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))
RACE := CGO_ENABLED=1 $(GO) test -race -gcflags=modernc.org/...=-race=false -vet=off -count=1 $(if $(MAC),,-exec 'env CGO_ENABLED=0')

test-quick: image-for-tests
	@command -v $${CC:-cc} >/dev/null || { echo "make test: no C compiler, which Go's race detector needs: install gcc (Debian: apt-get install gcc libc6-dev)"; exit 1; }
	$(GO) vet ./...
	$(RACE) -timeout 30m -p $(TWICE) ./vm/qemu ./cmd/minifleet ./store ./hosts/agent ./... # the longest first
	$(GO) test -count=1 -run 'TestEveryOrder|TestBooksAreTheStore|TestTenDays' ./autoscaler ./autoscaler/tendays # all 10,000 orders, and ten days: too slow with the detector

test-e2e: programs runner crash-programs image-for-tests
	cd e2e && $(GO) vet ./... && $(RACE) -timeout 30m ./site_test ./... # the longest first

lint: check-darwin
	@out=$$($(GO) run $(GOFUMPT) -l . ) && { [ -z "$$out" ] || { echo "not formatted (gofumpt -w):"; echo "$$out"; exit 1; }; }
	$(GO) vet ./...
	cd e2e && $(GO) vet ./...
	$(GO) run $(GOLANGCI) run ./...
	$(GO) run $(ACTIONLINT) -shellcheck= -pyflakes= # which not every machine has

# What only a Mac builds is checked everywhere, tests included, against the real bindings.
check-darwin:
	$(GO) run ./internal/darwincheck
	$(GO) run ./internal/darwincheck -C e2e

# The conformance suite on real machines, made of clones of an image.
test-vz:
	@[ -n "$(MAC)" ] || { echo "make test-vz: needs a Mac with Apple silicon; elsewhere make check-darwin checks the types"; exit 1; }
	@[ -f "$(IMAGE)/disk.img" ] || { echo "make test-vz: IMAGE is '$(IMAGE)': give an image's folder, as docs/mac-host.md describes it"; exit 1; }
	@mkdir -p bin
	CGO_ENABLED=1 $(GO) test -c -o bin/vz.test ./vm/vz
	$(MAKE) sign VMM=bin/vz.test
	cd vm/vz && MINIFLEET_TEST_IMAGE="$(abspath $(IMAGE))" ../../bin/vz.test -test.run TestHardware -test.v -test.timeout 60m

# Of one piece of code first, then of whole sites out of the programs.
bench: programs image-for-tests
	@mkdir -p e2e/bin
	cd e2e && $(GO) build -o bin/bench ./bench
ifeq ($(ONLY),)
	$(GO) test -run '^$$' -bench . -benchtime 1s ./autoscaler ./webhook
	GOGC=off GOMEMLIMIT=1GiB $(GO) test -v -count=1 -timeout 20m -run 'TestBill$$' ./autoscaler/tendays -bill
endif
	cd e2e && bin/bench -only '$(ONLY)' $(ARGS)

# A seed that breaks a law is shrunk to the shortest history that does. JOBS are of each seed.
SEEDS ?= 200
SEED  ?= 0
JOBS  ?= 2000
DAYS  ?= 10
sim:
	GOGC=off GOMEMLIMIT=1GiB $(GO) test -count=1 -timeout 60m -run 'TestTenDays$$' ./autoscaler/tendays -seeds $(SEEDS) -seed $(SEED) -jobs $(JOBS) -days $(DAYS)

# A failure leaves its input in testdata/fuzz of the package: mend the code, commit the input.
FUZZTIME ?= 30s
fuzz:
	@set -e; for file in $$(grep -rlE '^func Fuzz' --include='*_test.go' . | sort); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(f \*testing\.F).*/\1/p' $$file); do \
			echo "$$(dirname $$file) $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 0 $$(dirname $$file); \
		done; \
	done

generate: ## what is written by programs: the API's code, and the tables of the documents
	$(GO) generate ./...
	UPDATE_DOCS=1 $(GO) test -count=1 -run 'Page$$' ./docs ./cmd/...

clean:
	rm -rf bin e2e/bin
