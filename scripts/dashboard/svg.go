package dashboard

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Series is what a query gave, a value for each point in time; NaN where there is none.
type Series struct {
	Name   string
	Values []float64
}

const (
	column, line = 50.0, 26.0 // of the grid, in pixels
	gap          = 6.0
)

var palette = []string{"#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#edc948", "#9c755f", "#ff9da7", "#86bcb6"}

var colours = map[string]string{"green": "#3c8f4f", "orange": "#d9822b", "red": "#c0392b", "yellow": "#b8960c", "blue": "#3b6ea5"}

// SVG draws panels with their series, in the places where Grafana has them.
func SVG(panels []Panel, series map[int][]Series) []byte {
	var b strings.Builder
	bottom := 0
	for _, p := range panels {
		bottom = max(bottom, p.Grid.Y+p.Grid.H)
	}
	width, height := 24*column+gap, float64(bottom)*line+gap
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="11">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%.0f" height="%.0f" fill="#f2f3f5"/>`+"\n", width, height)
	for _, p := range panels {
		x, y := float64(p.Grid.X)*column+gap, float64(p.Grid.Y)*line+gap
		w, h := float64(p.Grid.W)*column-gap, float64(p.Grid.H)*line-gap
		fmt.Fprintf(&b, `<g transform="translate(%.1f %.1f)">`+"\n", x, y)
		if p.Type == "row" {
			fmt.Fprintf(&b, `<text y="15" font-size="14" font-weight="bold" fill="#333">%s</text>`+"\n</g>\n", html.EscapeString(p.Title))
			continue
		}
		fmt.Fprintf(&b, `<rect width="%.1f" height="%.1f" rx="3" fill="#fff" stroke="#ddd"/>`+"\n", w, h)
		if p.Type == "stat" {
			stat(&b, p, series[p.ID], w, h)
		} else {
			chart(&b, p, series[p.ID], w, h)
		}
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// stat draws values as words on their colour.
func stat(b *strings.Builder, p Panel, series []Series, w, h float64) {
	n := min(len(series), 4)
	for i, s := range series[:n] {
		v := s.latest()
		text := Human(v, p.FieldConfig.Defaults.Unit)
		for _, m := range p.FieldConfig.Defaults.Mappings {
			if o, ok := m.Options[fmt.Sprint(v)]; ok {
				text = o.Text
			}
		}
		if n > 1 {
			text = s.Name + ": " + text
		}
		fill := "#3b6ea5"
		for _, step := range p.FieldConfig.Defaults.Thresholds.Steps {
			if step.Value == nil || v >= *step.Value {
				fill = colours[step.Color]
			}
		}
		top, each := 22.0, (h-26)/float64(n)
		size := min(22, each*0.6)
		size = min(size, (w-12)/(0.6*float64(len(text)+1)))
		fmt.Fprintf(b, `<rect x="4" y="%.1f" width="%.1f" height="%.1f" rx="3" fill="%s"/>`+"\n", top+float64(i)*each, w-8, each-2, fill)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" font-size="%.1f" text-anchor="middle" fill="#fff">%s</text>`+"\n", w/2,
			top+float64(i)*each+each/2+size/3, size, html.EscapeString(text))
	}
	title(b, p)
}

func title(b *strings.Builder, p Panel) {
	fmt.Fprintf(b, `<text x="8" y="16" fill="#333" font-weight="bold">%s</text>`+"\n", html.EscapeString(p.Title))
}

// latest is the last value that is there.
func (s Series) latest() float64 {
	for _, v := range slices.Backward(s.Values) {
		if !math.IsNaN(v) {
			return v
		}
	}
	return math.NaN()
}

// chart draws lines, or areas on top of each other.
func chart(b *strings.Builder, p Panel, series []Series, w, h float64) {
	title(b, p)
	left, right, top, bottom := 46.0, 8.0, 26.0, 26.0
	stacked := p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal"
	most, points := 0.0, 0
	for _, s := range series {
		points = max(points, len(s.Values))
	}
	base := make([]float64, points)
	var tops [][]float64
	for _, s := range series {
		values := make([]float64, points)
		for i := range values {
			v := math.NaN()
			if i < len(s.Values) {
				v = s.Values[i]
			}
			if stacked {
				if math.IsNaN(v) {
					v = 0
				}
				base[i] += v
				v = base[i]
			}
			values[i] = v
			if v > most {
				most = v
			}
		}
		tops = append(tops, values)
	}
	if most == 0 {
		most = 1
	}
	at := func(i int, v float64) (float64, float64) {
		return left + (w-left-right)*float64(i)/float64(max(1, points-1)), h - bottom - (h-top-bottom)*v/(most*1.05)
	}
	for _, part := range []float64{0, 0.5, 1} {
		_, y := at(0, part*most)
		fmt.Fprintf(b, `<path d="M%.1f %.1fH%.1f" stroke="#e6e6e6"/><text x="%.1f" y="%.1f" text-anchor="end" fill="#777" font-size="10">%s</text>`+"\n",
			left, y, w-right, left-4, y+3, Human(part*most, p.FieldConfig.Defaults.Unit))
	}
	for n := len(tops) - 1; n >= 0; n-- {
		path, area, down := "", "", false
		for i, v := range tops[n] {
			if math.IsNaN(v) {
				down = false
				continue
			}
			x, y := at(i, v)
			if down {
				path += fmt.Sprintf("L%.1f %.1f", x, y)
			} else {
				path += fmt.Sprintf("M%.1f %.1f", x, y)
			}
			down = true
		}
		colour := palette[n%len(palette)]
		if stacked && path != "" {
			x0, y0 := at(0, 0)
			x1, _ := at(points-1, 0)
			area = fmt.Sprintf(`<path d="%sL%.1f %.1fL%.1f %.1fZ" fill="%s" fill-opacity="0.35"/>`, path, x1, y0, x0, y0, colour)
		}
		fmt.Fprintf(b, `%s<path d="%s" fill="none" stroke="%s" stroke-width="1.4"/>`+"\n", area, path, colour)
	}
	x := left
	for n, s := range series {
		room := 7*float64(len(s.Name)) + 18
		if x+room > w-right {
			fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="#777">…</text>`+"\n", x, h-8)
			break
		}
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="9" height="3" fill="%s"/><text x="%.1f" y="%.1f" fill="#555" font-size="10">%s</text>`+"\n",
			x, h-13, palette[n%len(palette)], x+12, h-8, html.EscapeString(s.Name))
		x += room
	}
}

// Human writes a value in Grafana's units.
func Human(v float64, unit string) string {
	if math.IsNaN(v) {
		return "–"
	}
	if unit == "percentunit" {
		return fmt.Sprintf("%.3g %%", v*100)
	}
	suffix := map[string]string{"pps": " p/s", "bps": " b/s", "s": " s", "bytes": "B", "reqps": " req/s"}[unit]
	for _, p := range []struct {
		at   float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= p.at {
			return fmt.Sprintf("%.3g %s", v/p.at, p.name) + strings.TrimSpace(suffix)
		}
	}
	return fmt.Sprintf("%.3g", v) + suffix
}
