# Everything that is built comes from cargo; this file only names what people do.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/zsync
# Where the shells look for completions of what is installed.
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
CARGO ?= cargo
# What is installed as the program.
BINARY ?= $${CARGO_TARGET_DIR:-target}/release/zsync

.PHONY: all setup build release check fmt test test-unit fuzz audit readme demo lab-consul lab-shell bench install uninstall deb clean

all: build

# Debian packages for building and for the lab, the lab's image (minutes, once per machine), and a real Consul.
setup:
	tests/setup
	tests/lab/build
	tests/consul/build

build:
	$(CARGO) build --locked

release:
	$(CARGO) build --locked --release

# What must be clean before a commit, besides the tests.
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items

# Every test, those on real ZFS included.
test:
	$(CARGO) test --locked --no-fail-fast

# The tests that need no ZFS: seconds.
test-unit:
	$(CARGO) test --locked --no-fail-fast --lib --bins
	$(CARGO) test --locked --no-fail-fast --test architecture --test docs --test plan --test roles

# Ten million inputs for everything that reads what a peer or zfs says: minutes. `make test` has a few thousand.
fuzz:
	ZSYNC_FUZZ_INPUTS=$${ZSYNC_FUZZ_INPUTS:-10000000} $(CARGO) test --locked --release --test fuzz -- --nocapture --test-threads 1

# Known weaknesses of what comes from elsewhere, where cargo-deny is installed and can get its data.
audit:
	$(CARGO) deny check

# The README's tables: of what is survived, from the scenarios that show it, and of speed, from the last measurement.
readme:
	ZSYNC_BLESS=1 $(CARGO) test --locked --test docs the_table_of -- --test-threads 1

# The main job on real ZFS, for a person to read.
demo: build
	tests/lab/run --timeout 1500 scenarios/demo

# The scenarios that have a catalog, with it in a real Consul.
lab-consul: build
	tests/lab/run --timeout 7200 guest-suite --catalog consul

lab-shell: build
	tests/lab/shell

# Everything that is measured, on a machine that does nothing else: first what needs no ZFS, then, on real ZFS, zsync
# beside other tools. The README shows the table of that after make readme.
bench: release
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

# A Debian package of what is installed, and of the units; named unlike Debian's own zsync, which is something else.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DEBARCH = $(shell dpkg --print-architecture)
DEB ?= target/zsync-zfs_$(VERSION)_$(DEBARCH).deb
# More options of dpkg-deb.
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
