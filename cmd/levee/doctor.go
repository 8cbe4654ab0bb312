package main

import (
	"cmp"
	"net"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

// examination is what `levee doctor` found.
type examination struct {
	Kernel     string          `json:"kernel"`
	Interfaces []string        `json:"interfaces"`
	OK         bool            `json:"ok"` // nothing is fatal
	Findings   []state.Finding `json:"findings"`
}

func (a *app) doctorCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "doctor [INTERFACE…]",
		Short: "Tell what on this host stands in the way, before anything is attached",
		Long: `Look at this host and at interfaces, and tell what stands in Levee's way or makes it slower, and what
to do about it: kernel, privileges, bpffs, other programs, MTU, queues, offloads. Interfaces are those
that are named, else those of the configuration, else all that are up. Nothing is changed, and no
daemon is needed. Exits with 1 if something is fatal.`,
		Example: `  levee doctor
  levee doctor eth1 -o json`,
		RunE: func(_ *cobra.Command, names []string) error { return a.doctor(path, names) },
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration (default "+config.Path+", where there is one)")
	return cmd
}

func (a *app) doctor(path string, names []string) error {
	c, err := config.Load(cmp.Or(path, a.getenv("LEVEE_CONFIG")))
	if err != nil {
		return err
	}
	if len(names) == 0 {
		for _, i := range c.Interfaces {
			names = append(names, i.Name)
		}
	}
	if len(names) == 0 {
		if names, err = a.offline.interfaces(); err != nil {
			return err
		}
	}
	e := examination{Interfaces: names, OK: true}
	e.Kernel, e.Findings = a.offline.examine(c.BPFFS, names)
	for _, f := range e.Findings {
		e.OK = e.OK && f.Severity != state.FindingFatal
	}
	if a.machine() {
		err = printList(a, e, e.Findings)
	} else {
		a.showExamination(&e)
	}
	if err == nil && !e.OK {
		return &codeError{code: exitFailed}
	}
	return err
}

func (a *app) showExamination(e *examination) {
	g := a.grid("", "about", "what", "do").flexible(2, true)
	for _, f := range e.Findings {
		switch f.Severity {
		case state.FindingFatal:
			g.painted(red, f.Severity, f.Subject, f.Message, f.Advice)
		case state.FindingWarning:
			g.painted(yellow, f.Severity, f.Subject, f.Message, f.Advice)
		default:
			g.row(f.Severity, f.Subject, f.Message, f.Advice)
		}
	}
	g.hide().render()
	who := plural(len(e.Interfaces), "interface", "interfaces")
	switch {
	case !e.OK:
		a.say("Levee can't work here until what is fatal is mended (kernel %s, %s looked at)", e.Kernel, who)
	case len(e.Findings) == 0:
		a.say("nothing stands in the way (kernel %s, %s looked at)", e.Kernel, who)
	default:
		a.say("nothing fatal stands in the way (kernel %s, %s looked at)", e.Kernel, who)
	}
}

// upInterfaces are the interfaces that packets can come in by.
func upInterfaces() (names []string, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			names = append(names, i.Name)
		}
	}
	return names, nil
}
