package state

import (
	"net/netip"
	"time"
)

// AllowSpec is what an allow entry says.
type AllowSpec struct {
	Prefix   Prefix `json:"prefix" doc:"Which no ban may touch"`
	NoLimits bool   `json:"no_limits,omitempty" doc:"Exempt from limits, too. A source address can be forged"`
	Comment  string `json:"comment,omitempty" maxLength:"256"`
}

// Validate checks an allow entry, and brings its prefix into canonical form.
func (a *AllowSpec) Validate() *Error {
	p, err := Canonical(a.Prefix.Prefix)
	if err != nil {
		return AsError(err, CodeInvalid)
	}
	a.Prefix.Prefix = p
	return checkText("comment", a.Comment)
}

// Allow is an allow entry that is in force.
type Allow struct {
	Prefix   netip.Prefix `json:"prefix"`
	NoLimits bool         `json:"no_limits,omitempty"`
	Comment  string       `json:"comment,omitempty"`
	Source   Source       `json:"source" enum:"config,api,protected" doc:"Where it was set; protected: by Levee itself, for an address that this host needs"`
	Actor    string       `json:"actor,omitempty"`
	Created  time.Time    `json:"created,omitzero"`
	Expires  time.Time    `json:"expires,omitzero" doc:"Absent: until it is taken back"`

	until uint64 // when it ends, in ns of CLOCK_MONOTONIC; 0: never
	boot  string // in which its end was promised by that clock
}

// Until is when the entry ends, in ns of CLOCK_MONOTONIC, or Forever.
func (a *Allow) Until() uint64 {
	if a.until == 0 {
		return Forever
	}
	return a.until
}

// InterfaceMode is how a program is attached to an interface.
type InterfaceMode string

// The modes. Auto tries native, then generic.
const (
	ModeAuto    InterfaceMode = "auto"
	ModeNative  InterfaceMode = "native"
	ModeGeneric InterfaceMode = "generic"
)

// UnmarshalText reads a mode; empty is auto.
func (m *InterfaceMode) UnmarshalText(b []byte) error {
	switch s := InterfaceMode(b); s {
	case "":
		*m = ModeAuto
	case ModeAuto, ModeNative, ModeGeneric:
		*m = s
	default:
		return invalid("mode", string(s), "is none of auto, native and generic")
	}
	return nil
}

// Interface is an interface that is to be shielded, and who says so.
type Interface struct {
	Name     string        `json:"name"`
	Config   InterfaceMode `json:"config,omitempty"`   // the mode that the file gives it; empty: it does not name it
	API      InterfaceMode `json:"api,omitempty"`      // the mode in which it was attached at run time
	Detached bool          `json:"detached,omitempty"` // taken off at run time, though the file names it
}

// Wanted tells whether the interface is to be shielded, in which mode, and who says so.
func (i Interface) Wanted() (InterfaceMode, Source, bool) {
	switch {
	case i.API != "":
		return i.API, FromAPI, true
	case i.Config != "" && !i.Detached:
		return i.Config, FromConfig, true
	}
	return "", "", false
}

// CheckInterface checks an interface's name and mode; whether there is such a one is the kernel's
// to say.
func CheckInterface(name string, mode InterfaceMode) *Error {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return invalid("interface", name, "is not an interface's name: 1 to 15 bytes")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c == '/' || c == ':' || c >= 0x7f {
			return invalid("interface", name, "is not an interface's name: it has %q in it", c)
		}
	}
	switch mode {
	case "", ModeAuto, ModeNative, ModeGeneric:
		return nil
	}
	return invalid("mode", string(mode), "is none of auto, native and generic")
}
