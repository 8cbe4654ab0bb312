package dashboard

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Panel is what is needed of a panel of Grafana's.
type Panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	Grid        Grid   `json:"gridPos"`
	FieldConfig struct {
		Defaults struct {
			Unit   string `json:"unit"`
			Custom struct {
				Stacking struct {
					Mode string `json:"mode"`
				} `json:"stacking"`
			} `json:"custom"`
			Mappings []struct {
				Options map[string]struct {
					Text string `json:"text"`
				} `json:"options"`
			} `json:"mappings"`
			Thresholds struct {
				Steps []Step `json:"steps"`
			} `json:"thresholds"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Targets []Target `json:"targets"`
}

// Grid is a panel's place: 24 columns make the width.
type Grid struct{ X, Y, W, H int }

// Step is a colour from a value on.
type Step struct {
	Color string   `json:"color"`
	Value *float64 `json:"value"`
}

// Target is a query and how its series are called.
type Target struct {
	Expr   string `json:"expr"`
	Legend string `json:"legendFormat"`
}

// ReadPanels reads a dashboard's file.
func ReadPanels(file string) ([]Panel, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var d struct{ Panels []Panel }
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return d.Panels, nil
}

// Query puts values in the place of a query's variables: all instances and interfaces, and an interval.
func Query(expr, interval string) string {
	return strings.NewReplacer("$__rate_interval", interval, "$instance", ".*", "$interface", ".*").Replace(expr)
}

var placeholder = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

// Name is what a series is called.
func (t Target) Name(labels map[string]string) string {
	return placeholder.ReplaceAllStringFunc(t.Legend, func(s string) string { return labels[placeholder.FindStringSubmatch(s)[1]] })
}
