// Package capture reads pcap and pcapng files for tests and hands out Ethernet frames. It writes
// nothing and judges no packet.
package capture
