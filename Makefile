# Cargo does all building. The targets here name the tasks that people run.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/zsync
# Directories where the shells look for the completions of installed programs.
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
CARGO ?= cargo
# The program that `make install` installs.
BINARY ?= $${CARGO_TARGET_DIR:-target}/release/zsync

.PHONY: all setup setup-lab build release check check-freebsd fmt test test-unit fuzz storm audit tables demo lab-consul lab-lag lab-matrix lab-shell bench install uninstall deb clean

all: build

# Installs the Debian packages for building and for the lab, builds the lab's images (minutes, once per machine) and
# downloads a real Consul. Whatever is there already is left as it is. The targets that need this setup start it.
setup: setup-lab
	tests/consul/build
	tests/lab/build --release bookworm

setup-lab:
	tests/setup
	tests/lab/build

build:
	$(CARGO) build --locked

release:
	$(CARGO) build --locked --release

# The checks that must pass before a commit, besides the tests: formatting, lints, rustdoc.
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items

# Checks that zsync compiles for FreeBSD. The target's standard library comes from rustup.
check-freebsd:
	rustup target add x86_64-unknown-freebsd
	$(CARGO) check --locked --target x86_64-unknown-freebsd

# All tests, including those on real ZFS.
test: setup
	$(CARGO) test --locked --no-fail-fast

# The tests that need no ZFS. They take seconds.
test-unit:
	$(CARGO) test --locked --no-fail-fast --lib --bins
	$(CARGO) test --locked --no-fail-fast --test architecture --test docs --test plan --test roles

# Feeds ten million mutated inputs, divided among all parsers of data from peers and from zfs, which takes minutes.
# `make test` uses a few thousand for each.
fuzz:
	ZSYNC_FUZZ_INPUTS=$${ZSYNC_FUZZ_INPUTS:-10000000} $(CARGO) test --locked --release --test fuzz -- --nocapture --test-threads 1

# Lets hostile sources and directors send ten thousand random orders and streams to a host on real ZFS, which takes
# hours. `make test` gives them a minute.
storm: setup-lab build
	$(CARGO) build --locked --example keep_storm
	ZSYNC_HOSTILE_ORDERS=$${ZSYNC_HOSTILE_ORDERS:-10000} tests/lab/run --timeout 90000 scenarios/keep_storm

# Checks the dependencies for known vulnerabilities. Needs cargo-deny and access to its advisory database.
audit:
	$(CARGO) deny check

# Writes the generated tables: tests/lab/SURVIVED.md from the scenarios, benches/README.md from the last measurement.
tables:
	ZSYNC_BLESS=1 $(CARGO) test --locked --test docs table_of -- --test-threads 1

# Shows the main job on real ZFS, with output for people to read.
demo: setup-lab build
	tests/lab/run --timeout 1500 scenarios/demo

# Runs every scenario that uses a catalog, but with the catalog in a real Consul.
lab-consul: setup build
	tests/lab/run --timeout 7200 guest-suite --catalog consul

# Runs the scenario that compares forecasts with the clock. It needs a machine that does nothing else.
lab-lag: setup-lab build
	tests/lab/run --timeout 600 guest-suite lag

# Runs every scenario on several releases of OpenZFS and writes the table in tests/lab/README.md.
lab-matrix: setup build
	$(CARGO) build --locked --examples
	tests/lab/matrix

lab-shell: setup-lab build
	tests/lab/shell

# Runs all measurements, first those that need no ZFS, then zsync beside other tools on real ZFS. The machine should do
# nothing else meanwhile. `make tables` then copies the results into benches/README.md.
bench: setup release
	$(CARGO) bench --locked --no-fail-fast
	tests/lab/bench

install: release
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(DOCDIR)
	install -d $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man7 $(DESTDIR)$(MANDIR)/man8
	install -d $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	install -m 755 "$(BINARY)" $(DESTDIR)$(BINDIR)/zsync
	$(DESTDIR)$(BINDIR)/zsync completions bash >$(DESTDIR)$(BASHDIR)/zsync
	$(DESTDIR)$(BINDIR)/zsync completions zsh >$(DESTDIR)$(ZSHDIR)/_zsync
	$(DESTDIR)$(BINDIR)/zsync completions fish >$(DESTDIR)$(FISHDIR)/zsync.fish
	install -m 644 man/*.5 $(DESTDIR)$(MANDIR)/man5/
	install -m 644 man/*.7 $(DESTDIR)$(MANDIR)/man7/
	install -m 644 man/*.8 $(DESTDIR)$(MANDIR)/man8/
	install -m 644 README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE $(DESTDIR)$(DOCDIR)/
	cp -R examples $(DESTDIR)$(DOCDIR)/

uninstall:
	rm -f $(DESTDIR)$(BINDIR)/zsync
	cd man && for page in *; do rm -f "$(DESTDIR)$(MANDIR)/man$${page##*.}/$$page"; done
	rm -f $(DESTDIR)$(BASHDIR)/zsync $(DESTDIR)$(ZSHDIR)/_zsync $(DESTDIR)$(FISHDIR)/zsync.fish
	rm -rf $(DESTDIR)$(DOCDIR)

# Builds a Debian package with everything that `make install` installs, and the systemd units. Its name is zsync-zfs,
# because Debian's own package zsync is an unrelated program.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DEBARCH = $(shell dpkg --print-architecture)
DEB ?= target/zsync-zfs_$(VERSION)_$(DEBARCH).deb
# Additional options for dpkg-deb.
DEBFLAGS ?=

deb: release
	rm -rf target/deb
	$(MAKE) install CARGO=true BINARY="$(BINARY)" DESTDIR=target/deb PREFIX=/usr BINDIR=/usr/bin MANDIR=/usr/share/man \
	  DOCDIR=/usr/share/doc/zsync-zfs ZSHDIR=/usr/share/zsh/vendor-completions
	find target/deb/usr/share/man -type f -exec gzip -9n {} +
	install -m 644 LICENSE-MIT target/deb/usr/share/doc/zsync-zfs/copyright
	install -d target/deb/usr/lib/systemd/system target/deb/etc/zsync target/deb/DEBIAN
	install -d -m 700 target/deb/var/lib/zsync
	for unit in examples/systemd/*.service examples/systemd/*.socket examples/systemd/*.timer; do \
	  sed 's,/usr/local/bin/zsync,/usr/bin/zsync,' "$$unit" >"target/deb/usr/lib/systemd/system/$${unit##*/}" || exit 1; \
	done
	install -m 755 examples/debian/postinst examples/debian/prerm examples/debian/postrm target/deb/DEBIAN/
	sed -e 's/@VERSION@/$(VERSION)/; s/@ARCH@/$(DEBARCH)/' -e "s/@SIZE@/$$(du -sk target/deb | cut -f 1)/" \
	  -e "s/@GLIBC@/$$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)/" examples/debian/control >target/deb/DEBIAN/control
	cd target/deb && find usr -type f -exec md5sum {} + >DEBIAN/md5sums
	dpkg-deb --root-owner-group $(DEBFLAGS) --build target/deb "$(DEB)"
	rm -rf target/deb

clean:
	$(CARGO) clean
