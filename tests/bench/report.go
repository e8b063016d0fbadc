package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// report is all that a run has found.
type report struct {
	options     options
	environment []string
	databases   []string
	results     []result
	took        time.Duration
}

// stores are the databases of the results, in their order.
func (r *report) stores() []string {
	var list []string
	for _, res := range r.results {
		if len(list) == 0 || list[len(list)-1] != res.store {
			list = append(list, res.store)
		}
	}
	return list
}

// largest is a group's result on the largest table of a database.
func (r *report) largest(store, group string) *result {
	var found *result
	for i := range r.results {
		if res := &r.results[i]; res.store == store && res.name == group && (found == nil || res.size > found.size) {
			found = res
		}
	}
	return found
}

// print writes the results as Markdown, whose columns are aligned for a terminal.
func (r *report) print(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# How fast\n\n")
	b.WriteString("Made by `go -C tests run ./bench`; not to be edited.\n\n")
	for _, line := range append(r.environment, "Databases: "+strings.Join(r.databases, ", ")) {
		b.WriteString("- " + line + "\n")
	}
	fmt.Fprintf(&b, "- %d rounds, slices of %v, %d goroutines in the parallel groups, %v in all\n", r.options.rounds, r.options.slice, r.options.parallel, r.took.Round(time.Second))
	b.WriteString(`
Every contestant is asked for the same random rows in the same order, and all answers were compared with what was stored before anything was measured. In each round every contestant runs for a short slice, cut into pieces that take turns in an order drawn anew. Times are medians over the rounds; × is the median of the ratio to the first contestant within a round, with its quartiles; allocations and bytes are an operation's.

- All who read our table scan its 14 columns into the same struct, data's JSON decoded. scs's stores hand out the bytes of one column, undecoded. The same tokens, of the plugin's own format, are digested by SHA-256 everywhere (HashTokenInStore in scs).
- No session is due for a touch during the measurement: last_used_at is when the table was filled, and Config.TouchInterval a day. As a session is used, one Authenticate an hour also writes.
- gormstore cannot be had as a module: the same calls of GORM are made in its place.
- GORM and gormsessions are there as they come, and with gorm.Config.PrepareStmt. All who use database/sql share one pool, with the settings that the README recommends.
`)
	if r.options.only == nil {
		b.WriteString("\n## Ratios to reach\n\n")
		rows := [][]string{{"", "database", "goal", "measured", "", "prepared SQL"}}
		for _, v := range r.verdicts() {
			rows = append(rows, []string{v.title, v.store, v.limit, v.measured, v.word(), v.byHand})
		}
		table(&b, rows)
		b.WriteString("\nThe largest table counts. The last column is the same ratio for prepared SQL by hand: no library that asks for these columns can be expected below it. What pruning does to live traffic is measured by BenchmarkR50Prune.\n")
	}
	section := ""
	for i := range r.results {
		res := &r.results[i]
		if s := fmt.Sprintf("%s, %s rows", res.store, thousands(res.size)); s != section {
			section = s
			b.WriteString("\n## " + s + "\n")
		}
		title := res.title
		if res.goroutines > 1 {
			title = fmt.Sprintf("%s, %d goroutines", title, res.goroutines)
		}
		b.WriteString("\n### " + title + "\n\n")
		rows := [][]string{{res.name, "time", "×", "allocs", "bytes"}}
		for i, c := range res.contestants {
			ratio := res.ratio(i, 0)
			x := fmt.Sprintf("%s (%s–%s)", short(ratio.median), short(ratio.low), short(ratio.high))
			if i == 0 {
				x = "1"
			}
			rows = append(rows, []string{c.name, duration(res.of(i, nanoseconds).median), x,
				fmt.Sprintf("%.0f", res.of(i, allocations).median), fmt.Sprintf("%.0f", res.of(i, bytesOf).median)})
		}
		table(&b, rows)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func short(x float64) string {
	if x < 0.1 {
		return fmt.Sprintf("%.4f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func duration(ns float64) string {
	switch {
	case ns < 10_000:
		return fmt.Sprintf("%.2f µs", ns/1000)
	case ns < 100_000:
		return fmt.Sprintf("%.1f µs", ns/1000)
	}
	return fmt.Sprintf("%.0f µs", ns/1000)
}

// table writes a Markdown table: the first column is text, the others stand right.
func table(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), 3)
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				b.WriteString("| " + cell + pad)
			} else {
				b.WriteString(" | " + pad + cell)
			}
		}
		b.WriteString(" |\n")
		if n == 0 {
			for i, width := range widths {
				if i == 0 {
					b.WriteString("|" + strings.Repeat("-", width+2))
				} else {
					b.WriteString("|" + strings.Repeat("-", width+1) + ":")
				}
			}
			b.WriteString("|\n")
		}
	}
}

// save writes the files.
func (r *report) save() error {
	for _, file := range []struct {
		name  string
		write func(io.Writer) error
	}{{r.options.markdown, r.print}, {r.options.svg, r.draw}} {
		if file.name == "" {
			continue
		}
		var b strings.Builder
		if err := file.write(&b); err != nil {
			return err
		}
		if err := os.WriteFile(file.name, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
