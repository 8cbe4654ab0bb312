// Package systemd holds no code but tests of what is installed: the package in a Debian that systemd
// boots in a container. They need root, debootstrap and systemd-container, and run where LEVEE_SYSTEMD
// is set: `make test-systemd`.
package systemd
