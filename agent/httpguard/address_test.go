package httpguard

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Who a client is does not depend on what the client says.
func TestClient(t *testing.T) {
	trusted := []string{"10.0.0.0/8", "2001:db8:f::/48"}
	long := strings.Repeat("10.0.0.1, ", maxHops)
	for _, tt := range []struct {
		name    string
		remote  string
		header  Header
		lines   []string
		want    string // empty: unknown
		proxied bool
	}{
		{"no proxy", "192.0.2.1:1", NoHeader, nil, "192.0.2.1", false},
		{"no proxy, a header", "192.0.2.1:1", NoHeader, []string{"203.0.113.9"}, "192.0.2.1", false},
		{"nobody's proxy", "192.0.2.1:1", XForwardedFor, []string{"203.0.113.9"}, "192.0.2.1", false},
		{"mapped", "[::ffff:192.0.2.1]:1", NoHeader, nil, "192.0.2.1", false},
		{"a zone", "[fe80::1%eth0]:1", NoHeader, nil, "fe80::1", false},

		{"one proxy", "10.0.0.1:1", XForwardedFor, []string{"192.0.2.1"}, "192.0.2.1", true},
		{"forged to the left", "10.0.0.1:1", XForwardedFor, []string{"203.0.113.9, 192.0.2.1"}, "192.0.2.1", true},
		{"a trusted one forged", "10.0.0.1:1", XForwardedFor, []string{"10.0.0.9, 192.0.2.1"}, "192.0.2.1", true},
		{"two proxies", "10.0.0.1:1", XForwardedFor, []string{"203.0.113.9, 192.0.2.1, 10.0.0.2"}, "192.0.2.1", true},
		{"two lines", "10.0.0.1:1", XForwardedFor, []string{"203.0.113.9", "192.0.2.1", "10.0.0.2"}, "192.0.2.1", true},
		{"rubbish to the left", "10.0.0.1:1", XForwardedFor, []string{"\",;x, 192.0.2.1"}, "192.0.2.1", true},
		{"rubbish right where it counts", "10.0.0.1:1", XForwardedFor, []string{"192.0.2.1, x"}, "", true},
		{"a port", "10.0.0.1:1", XForwardedFor, []string{"192.0.2.1:4711"}, "192.0.2.1", true},
		{"IPv6", "[2001:db8:f::1]:1", XForwardedFor, []string{"2001:db8::7"}, "2001:db8::7", true},
		{"IPv6 with a port", "10.0.0.1:1", XForwardedFor, []string{"[2001:db8::7]:4711"}, "2001:db8::7", true},
		{"mapped by the proxy", "10.0.0.1:1", XForwardedFor, []string{"::ffff:192.0.2.1"}, "192.0.2.1", true},
		{"all trusted", "10.0.0.1:1", XForwardedFor, []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3", true},
		{"the proxy says nothing", "10.0.0.1:1", XForwardedFor, nil, "", true},
		{"the proxy says an empty thing", "10.0.0.1:1", XForwardedFor, []string{""}, "", true},
		{"the other header", "10.0.0.1:1", Forwarded, nil, "", true},
		{"leading zeros", "10.0.0.1:1", XForwardedFor, []string{"192.0.2.010"}, "", true},
		{"a chain without end", "10.0.0.1:1", XForwardedFor, []string{"192.0.2.1, " + long + "10.0.0.1"}, "10.0.0.1", true},
		{"a Unix socket", "@", XForwardedFor, []string{"192.0.2.1"}, "192.0.2.1", true},
		{"a Unix socket and no proxy", "@", NoHeader, []string{"192.0.2.1"}, "", false},

		{"RFC 7239", "10.0.0.1:1", Forwarded, []string{"for=192.0.2.1"}, "192.0.2.1", true},
		{"RFC 7239, 4", "10.0.0.1:1", Forwarded, []string{`For="[2001:db8:cafe::17]:4711"`}, "2001:db8:cafe::17", true},
		{"RFC 7239, 4, parameters", "10.0.0.1:1", Forwarded, []string{"for=192.0.2.60;proto=http;by=203.0.113.43"}, "192.0.2.60", true},
		{"RFC 7239, parameters before", "10.0.0.1:1", Forwarded, []string{`proto=http; host="a,b;for=10.0.0.9" ;FOR=192.0.2.60`}, "192.0.2.60", true},
		{"RFC 7239, 7.1", "10.0.0.1:1", Forwarded, []string{`for=203.0.113.9, for=192.0.2.1`, `for=10.0.0.2`}, "192.0.2.1", true},
		{"RFC 7239, 6.3", "10.0.0.1:1", Forwarded, []string{"for=_gazonk"}, "", true},
		{"RFC 7239, 6.2", "10.0.0.1:1", Forwarded, []string{"for=192.0.2.1, for=unknown"}, "", true},
		{"RFC 7239, a port that is hidden", "10.0.0.1:1", Forwarded, []string{`for="192.0.2.1:_x"`}, "", true},
		{"a quote without end", "10.0.0.1:1", Forwarded, []string{`for=", for=192.0.2.1`}, "192.0.2.1", true},
		{"a quote without end before IPv6", "10.0.0.1:1", Forwarded, []string{`for="203.0.113.9, for="[2001:db8::7]"`}, "2001:db8::7", true},
		{"an escaped quote", "10.0.0.1:1", Forwarded, []string{`for="\", for=192.0.2.1`}, "192.0.2.1", true},
		{"a comma in quotes", "10.0.0.1:1", Forwarded, []string{`host="a, for=203.0.113.9, b";for=192.0.2.1`}, "192.0.2.1", true},
		{"twice for", "10.0.0.1:1", Forwarded, []string{"for=203.0.113.9;for=192.0.2.1"}, "", true},
		{"without for", "10.0.0.1:1", Forwarded, []string{"proto=https"}, "", true},
		{"not a parameter", "10.0.0.1:1", Forwarded, []string{"192.0.2.1"}, "", true},
	} {
		v := resolver{trusted: prefixes(trusted...), header: tt.header}
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = tt.remote
		name := string(tt.header)
		if name == "" {
			name = "X-Forwarded-For"
		}
		for _, line := range tt.lines {
			r.Header.Add(name, line)
		}
		got := v.client(r)
		text := ""
		if got.Addr.IsValid() {
			text = got.Addr.String()
		}
		if text != tt.want || got.Proxied != tt.proxied {
			t.Errorf("%s: %q, proxied %t; want %q, %t", tt.name, text, got.Proxied, tt.want, tt.proxied)
		}
	}
}

// Whatever a client writes, the address that its proxy adds behind it is the client's.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{"", "203.0.113.9", `for="`, `for="\`, `for=192.0.2.9;proto="a,b`, `\"`, ",,,", "unknown", `"[2001:db8::1]:80"`, "10.0.0.1", "for=10.0.0.1"} {
		f.Add(s)
	}
	trusted := prefixes("10.0.0.0/8")
	f.Fuzz(func(t *testing.T, written string) {
		for _, tt := range []struct {
			header Header
			added  string
			want   string
		}{
			{XForwardedFor, "192.0.2.1", "192.0.2.1"}, {XForwardedFor, "[2001:db8::7]:80", "2001:db8::7"},
			{Forwarded, "for=192.0.2.1", "192.0.2.1"}, {Forwarded, `proto=https;for="[2001:db8::7]:80"`, "2001:db8::7"},
		} {
			v := resolver{trusted: trusted, header: tt.header}
			for _, lines := range [][]string{{written + ", " + tt.added}, {written, tt.added}, {written + "," + tt.added, strings.Replace("for=10.0.0.2", "for=", map[Header]string{Forwarded: "for="}[tt.header], 1)}} {
				got := v.client(&http.Request{RemoteAddr: "10.0.0.1:1", Header: http.Header{string(tt.header): lines}})
				if got.Addr.String() != tt.want || !got.Proxied {
					t.Fatalf("%s %q: %v", tt.header, lines, got)
				}
			}
			// And alone: bounded work, no panic, and never an address with a zone.
			if got := v.client(&http.Request{RemoteAddr: "10.0.0.1:1", Header: http.Header{string(tt.header): {written}}}); got.Addr.Zone() != "" || got.Addr.Is4In6() {
				t.Fatalf("%q: %v", written, got)
			}
		}
	})
}
