package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write docs/openapi.json anew")

// The document that describes the API in docs is the one that is served.
func TestOpenAPI(t *testing.T) {
	w := ask(Handler(Config{Backend: &stub{}, Version: "0"}), "GET", "/openapi.json", "")
	var got bytes.Buffer
	if err := json.Indent(&got, w.Body.Bytes(), "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	path := filepath.Join("..", "..", "docs", "openapi.json")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Error("docs/openapi.json differs from what is served; go test ./agent/api -update writes it anew")
	}
	if !bytes.Contains(want, []byte(`"openapi": "3.1`)) {
		t.Error("it is not OpenAPI 3.1")
	}
}
