package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// progress is a bar on a terminal, and a line for each stage elsewhere.
type progress struct {
	out      *os.File
	terminal bool
	title    string
	total    int
	done     int
	began    time.Time
	drawn    time.Time
}

func newProgress(out *os.File) *progress {
	info, err := out.Stat()
	return &progress{out: out, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (p *progress) begin(title string, total int) {
	p.title, p.total, p.done, p.began, p.drawn = title, max(total, 1), 0, time.Now(), time.Time{}
	if !p.terminal {
		_, _ = fmt.Fprintln(p.out, title)
	}
	p.draw()
}

func (p *progress) add(n int) {
	p.done += n
	p.draw()
}

func (p *progress) end() {
	if p.terminal {
		_, _ = fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// note says something above the bar.
func (p *progress) note(format string, args ...any) {
	p.end()
	_, _ = fmt.Fprintf(p.out, format+"\n", args...)
	p.draw()
}

func (p *progress) draw() {
	if !p.terminal || time.Since(p.drawn) < 100*time.Millisecond {
		return
	}
	p.drawn = time.Now()
	const width = 30
	share := min(float64(p.done)/float64(p.total), 1)
	full := int(share * width)
	left := ""
	if took := time.Since(p.began); share > 0.02 {
		left = ", " + time.Duration(float64(took)/share*(1-share)).Round(time.Second).String() + " left"
	}
	_, _ = fmt.Fprintf(p.out, "\r\x1b[K[%s%s] %3.0f %%%s  %s", strings.Repeat("█", full), strings.Repeat("░", width-full), share*100, left, p.title)
}
