package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestDocumentation compares docs/configuration.md with the types, their defaults and the reference; -update
// writes it.
func TestDocumentation(t *testing.T) {
	const path = "../../docs/configuration.md"
	var b strings.Builder
	b.WriteString("# Configuration\n\nMade of the configuration's types and of the reference by `go test ./agent/config -update`; a test compares.\n" +
		"The file is `" + Path + "`. `levee config check` tells what is wrong with one, `levee config reload` takes it, and\n`levee config show` tells which value of each setting is in force and where it comes from: nobody (`default`), a line\nof the file (`file`), a flag of `levee run` (`flag`), or somebody at run time (`state`).\n\n" +
		"## Every setting\n\n| setting | default |\n|---|---|\n")
	defaults := map[string]string{}
	for _, s := range Default().Settings() {
		defaults[s.Path] = s.Value
	}
	for _, name := range slices.Sorted(slices.Values(settingsOf(reflect.TypeFor[Config](), ""))) {
		value, ok := defaults[name]
		switch {
		case !ok:
			value = "–"
		case value == "":
			value = "empty"
		default:
			value = "`" + value + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", name, value)
	}
	fmt.Fprintf(&b, "\n`[]` stands for each item of a list, `*` for a name of your choice.\n\n## The reference\n\nWhat each is for. Lines that begin with `#` and no space are proposals.\n\n```yaml\n%s```\n", Reference)
	want := b.String()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != want {
		t.Errorf("%s is not what the types give; -update writes it anew (%v)", path, err)
	}
	if len(defaults) < 20 || !slices.Contains(settingsOf(reflect.TypeFor[Config](), ""), "notify.url") {
		t.Errorf("only %d defaults", len(defaults))
	}
}
