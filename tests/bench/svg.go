package main

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// bar is one contestant in the picture.
type bar struct {
	label string
	value float64
	text  string
	ours  bool
}

// panel is one comparison in the picture.
type panel struct {
	title string
	bars  []bar
	one   bool // a line at 1
}

// shown is a contestant that the picture has, and what it is called there.
type shown struct{ name, label string }

// bars are those of the contestants that were measured.
func (r *result) bars(list ...shown) []bar {
	var bars []bar
	for _, c := range list {
		if i := r.index(c.name); i >= 0 {
			x := r.ratio(i, 0).median
			bars = append(bars, bar{label: c.label, value: x, text: fmt.Sprintf("%.2f", x), ours: strings.HasPrefix(c.name, "gormsessions")})
		}
	}
	return bars
}

// panels are what the picture shows, side by side where there are two databases.
func (r *report) panels() [][]panel {
	var rows [][]panel
	row := func(title, group string, list ...shown) {
		var panels []panel
		for _, store := range r.stores() {
			if res := r.largest(store, group); res != nil {
				panels = append(panels, panel{title: store + ": " + title, bars: res.bars(list...), one: true})
			}
		}
		if len(panels) > 0 {
			rows = append(rows, panels)
		}
	}
	row("look a session up by its token", lookupGroup,
		shown{rawName, "SQL, prepared"}, shown{"pgx pool", "pgx pool"},
		shown{ours, "gormsessions"}, shown{ours + prepareStmt, "gormsessions, PrepareStmt"},
		shown{"scs, sqlite3store", "scs, sqlite3store"}, shown{"scs, pgxstore", "scs, pgxstore"}, shown{"scs, mysqlstore", "scs, mysqlstore"},
		shown{"scs, goredisstore (Redis)", "scs, Redis"}, shown{gormstore, "scs, gormstore"},
		shown{"GORM Take", "GORM Take"}, shown{"GORM Take" + prepareStmt, "GORM Take, PrepareStmt"}, shown{"GORM generics", "GORM generics"})
	row("with its owner", ownerGroup,
		shown{rawJoinName, "SQL, prepared join"},
		shown{oursOwner, "gormsessions"}, shown{oursOwner + prepareStmt, "gormsessions, PrepareStmt"},
		shown{"GORM Joins", "GORM Joins"}, shown{twoQueries, "GORM, two queries"}, shown{twoQueries + prepareStmt, "GORM, two, PrepareStmt"},
		shown{"GORM Preload", "GORM Preload"})
	row("create a session", createGroup,
		shown{rawName, "SQL, prepared"},
		shown{oursCreate, "gormsessions"}, shown{oursCreate + prepareStmt, "gormsessions, PrepareStmt"},
		shown{"GORM Create", "GORM Create"}, shown{"GORM Create" + prepareStmt, "GORM Create, PrepareStmt"},
		shown{gormstore + " Commit", "scs, gormstore"})
	if len(r.stores()) == 0 {
		return rows
	}
	if res := r.largest(r.stores()[0], memoryGroup); res != nil && res.index(oursCached) >= 0 {
		p := panel{title: "Without a query, in µs"}
		for _, c := range []shown{{oursCached, "gormsessions, cached"}, {"JWT, HS256", "JWT, HS256"}, {"JWT, EdDSA", "JWT, EdDSA"}, {"JWT, ES256", "JWT, ES256"}} {
			if i := res.index(c.name); i >= 0 {
				us := res.of(i, nanoseconds).median / 1000
				p.bars = append(p.bars, bar{label: c.label, value: us, text: fmt.Sprintf("%.1f", us), ours: c.name == oursCached})
			}
		}
		rows = append(rows, []panel{p})
	}
	return rows
}

// The measures of the picture, in pixels.
const (
	panelWidth = 490
	labelWidth = 222
	valueWidth = 44
	barHeight  = 14
	barStep    = 21
	margin     = 20
)

// draw writes the picture. Its colours follow the reader's, light or dark.
func (r *report) draw(w io.Writer) error {
	rows := r.panels()
	columns := 1
	for _, row := range rows {
		columns = max(columns, len(row))
	}
	var b strings.Builder
	y := 52
	for _, row := range rows {
		tallest := 0
		for column, p := range row {
			x := margin + column*(panelWidth+margin)
			p.draw(&b, x, y)
			tallest = max(tallest, len(p.bars))
		}
		y += 30 + tallest*barStep + 22
	}
	width := columns*(panelWidth+margin) + margin
	size := thousands(r.options.rows[len(r.options.rows)-1]) + " rows, "
	out := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-label="How long each way to look a session up takes, as a multiple of prepared SQL">
<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 11.5px; fill: #59636e }
.bar { fill: #afb8c1 } .ours { fill: #1a7f37 } .name { font-weight: 600 } .one { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 }
.bar { fill: #57606a } .ours { fill: #3fb950 } .one { stroke: #3d444d }
}
</style>
<text class="title" x="%d" y="22">Time, as a multiple of prepared SQL by hand (shorter is faster)</text>
<text class="small" x="%[3]d" y="40">%s</text>
%s</svg>
`, width, y, margin, html.EscapeString(size+fmt.Sprintf("medians of %d interleaved rounds", r.options.rounds)), b.String())
	_, err := io.WriteString(w, out)
	return err
}

func (p panel) draw(b *strings.Builder, x, y int) {
	const room = panelWidth - labelWidth - valueWidth
	longest := 0.0
	for _, bar := range p.bars {
		longest = max(longest, bar.value)
	}
	fmt.Fprintf(b, "<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n", x, y+18, html.EscapeString(p.title))
	left, top := x+labelWidth, y+30
	if p.one && longest > 0 {
		at := float64(left) + room/longest
		fmt.Fprintf(b, "<line class=\"one\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", at, at, top-3, top+len(p.bars)*barStep-4)
	}
	for i, bar := range p.bars {
		at := top + i*barStep
		class, name := "bar", "label"
		if bar.ours {
			class, name = "bar ours", "label name"
		}
		length := room * bar.value / longest
		fmt.Fprintf(b, "<text class=\"%s\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", name, left-8, at+12, html.EscapeString(bar.label))
		fmt.Fprintf(b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>\n", class, left, at, max(length, 1), barHeight)
		fmt.Fprintf(b, "<text class=\"%s\" x=\"%.1f\" y=\"%d\">%s</text>\n", name, float64(left)+length+6, at+12, bar.text)
	}
}
