package api

import (
	"net/http"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/levee-xdp/levee/agent/state"
)

// describe adds to the API's document what huma does not know: the health endpoints, that errors are
// a Problem, and that a POST may carry an Idempotency-Key.
func describe(api huma.API) {
	doc := api.OpenAPI()
	health := doc.Components.Schemas.Schema(reflect.TypeFor[state.Health](), true, "Health")
	answer := func(words string) *huma.Response {
		return &huma.Response{Description: words, Content: map[string]*huma.MediaType{"application/json": {Schema: health}}}
	}
	known := []map[string][]string{{"bearer": {}}, {"certificate": {}}, {}} // whatever the scope
	doc.AddOperation(&huma.Operation{Security: known, OperationID: "healthz", Method: http.MethodGet, Path: "/healthz", Tags: []string{"health"},
		Summary: "That the daemon lives, and what is wrong with it", Responses: map[string]*huma.Response{"200": answer("It lives")}})
	doc.AddOperation(&huma.Operation{Security: known, OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Tags: []string{"health"},
		Summary: "Whether all is well", Responses: map[string]*huma.Response{"200": answer("All is well"), "503": answer("Something is wrong, or it is starting")}})

	schemas := doc.Components.Schemas
	schemas.Schema(reflect.TypeFor[Problem](), true, "Problem")
	all := schemas.Map()
	if _, ok := all["ErrorModel"]; ok {
		*all["ErrorModel"] = *all["Problem"]
		delete(all, "Problem")
	}
	most := maxKey
	key := &huma.Param{Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: &most},
		Description: "A request with a key that was given before, by the same caller and with the same body, is not done again: it gets the first one's answer"}
	for path, item := range doc.Paths {
		if item.Post != nil && path != bulkPath {
			item.Post.Parameters = append(slices.Clip(item.Post.Parameters), key)
		}
	}
}
