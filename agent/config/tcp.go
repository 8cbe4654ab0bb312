package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// TCP is how the API is served to other hosts: not at all, if nobody says where.
type TCP struct {
	Listen       string          `json:"listen"`      // empty: nowhere
	Certificate  string          `json:"certificate"` // PEM files
	Key          string          `json:"key"`
	ClientCA     string          `json:"client_ca"`               // empty: no client certificates are taken
	Clients      []APIClient     `json:"clients"`                 // who has a certificate, and what they may
	Hosts        []string        `json:"hosts"`                   // names beside those of the certificate
	Connections  state.Count     `json:"connections"`             // at once, in all
	EachAddress  state.Count     `json:"connections_per_address"` // at once
	Requests     state.Threshold `json:"requests"`                // of one token or certificate
	FromAddress  state.Threshold `json:"requests_per_address"`
	BuiltInLimit bool            `json:"limit"` // shield the listener by a limit of its own
}

// APIClient is whoever shows a certificate.
type APIClient struct {
	Name   string        `json:"name"`  // a DNS name, URI or mail address of the certificate, or else its common name
	Owner  string        `json:"owner"` // who that is, in logs and claims
	Scopes []state.Scope `json:"scopes"`
	state.AskedBounds
}

// Bounds are those of its bans; nil if it has none.
func (c *APIClient) Bounds() *state.Bounds {
	if c.unsaid() && slices.Contains(c.Scopes, state.ScopeAdmin) {
		return nil
	}
	return c.Over(state.DefaultBounds(c.Owner))
}

func (c *APIClient) unsaid() bool {
	return c.IPv4 == nil && c.IPv6 == nil && c.Longest == nil && c.Claims == nil && c.Force == nil && c.Origins == nil
}

func perSecond(n, burst uint64) state.Threshold {
	return state.Threshold{Rate: state.Rate{Count: n, Per: time.Second}, Burst: state.Burst{Units: burst}}
}

func defaultTCP() TCP {
	return TCP{Connections: 1024, EachAddress: 256, Requests: perSecond(500, 1000), FromAddress: perSecond(1000, 2000), BuiltInLimit: true}
}

// complete gives clients the bounds that a token gets, where none are named.
func (t *TCP) complete() {
	for i := range t.Clients {
		c := &t.Clients[i]
		if c.Owner == "" {
			c.Owner = c.Name
		}
		if b := c.Bounds(); b != nil {
			c.AskedBounds = *b.Asked()
		}
	}
	for i, h := range t.Hosts {
		t.Hosts[i] = strings.ToLower(strings.TrimSuffix(h, "."))
	}
}

func (t *TCP) problems() []*state.Error {
	var found []*state.Error
	bad := func(field, value, detail string) {
		found = append(found, &state.Error{Code: state.CodeInvalid, Field: "api.tcp." + field, Value: value, Detail: detail})
	}
	if t.Listen == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(t.Listen)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
		bad("listen", t.Listen, "is not an address and a port; write 192.0.2.1:9465, [::]:9465 for every address, or off")
	} else if _, err := netip.ParseAddr(host); err != nil && host != "" {
		bad("listen", t.Listen, fmt.Sprintf("its host %q is not an address", host))
	}
	for _, f := range []struct {
		name, value string
		needed      bool
	}{{"certificate", t.Certificate, true}, {"key", t.Key, true}, {"client_ca", t.ClientCA, len(t.Clients) > 0}} {
		switch {
		case f.value == "" && f.needed && f.name == "client_ca":
			bad(f.name, "", "is missing: it says whom the certificates of api.tcp.clients go back to")
		case f.value == "" && f.needed:
			bad(f.name, "", "is missing: other hosts are spoken to with TLS alone")
		case f.value != "" && (!filepath.IsAbs(f.value) || strings.ContainsRune(f.value, 0)):
			bad(f.name, f.value, "is not an absolute path")
		}
	}
	names := map[string]bool{}
	for i := range t.Clients {
		c := &t.Clients[i]
		at := "clients[" + strconv.Itoa(i) + "]"
		if c.Name == "" {
			bad(at+".name", "", "is missing: it is a name that the client's certificate has")
		}
		if names[c.Name] {
			bad(at+".name", c.Name, "stands here twice")
		}
		names[c.Name] = true
		if len(c.Scopes) == 0 {
			bad(at+".scopes", "", "are missing: name some of read, ban, limit and admin")
		}
		if b := c.Bounds(); b != nil {
			if err := b.Validate(); err != nil {
				found = append(found, err.In("api.tcp."+at))
			}
		}
	}
	for _, f := range []struct {
		name  string
		value state.Count
	}{{"connections", t.Connections}, {"connections_per_address", t.EachAddress}} {
		if f.value < 1 || f.value > 65536 {
			bad(f.name, f.value.String(), "is not within 1 to 65536")
		}
	}
	for _, f := range []struct {
		name  string
		value *state.Threshold
	}{{"requests", &t.Requests}, {"requests_per_address", &t.FromAddress}} {
		l := state.LimitSpec{Packets: f.value}
		if err := l.Validate(state.DefaultLimit); err != nil {
			err.Field = f.name
			found = append(found, err.In("api.tcp"))
		}
	}
	return found
}

// BuiltInLimit is the name of the limit that shields the API's listener.
const BuiltInLimit = "levee-api"

// limit is the limit that shields the listener: enough for a gateway that pushes bans in batches, and
// a bound for who only wants to keep the daemon busy.
func (t *TCP) limit() map[string]state.LimitSpec {
	_, port, err := net.SplitHostPort(t.Listen)
	if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || n == 0 || !t.BuiltInLimit {
		return nil
	}
	var service state.Service
	if err := service.UnmarshalText([]byte("tcp/" + port)); err != nil {
		return nil
	}
	packets, syn := perSecond(20_000, 40_000), perSecond(100, 400)
	return map[string]state.LimitSpec{BuiltInLimit: {Services: []state.Service{service}, Packets: &packets, SYN: &syn}}
}
