package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRun runs the whole program on small SQLite tables, so that it cannot rot. It
// looks at no time.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	markdown, svg := filepath.Join(dir, "results.md"), filepath.Join(dir, "how-fast.svg")
	o, err := parse([]string{"-db", "sqlite", "-rows", "50,100", "-rounds", "2", "-slice", "1ms", "-markdown", markdown, "-svg", svg}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), o, &out, null(t)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{rawName, ours, oursOwner, oursCreate, oursList, gormstore, "JWT, EdDSA", "Authenticate among 100 / among 50 rows", "## SQLite, 100 rows"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q", want)
		}
	}
	if text, err := os.ReadFile(markdown); err != nil || string(text) != out.String() {
		t.Errorf("the file is not what was printed (%v)", err)
	}
	picture, err := os.Open(svg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = picture.Close() }()
	for parser := xml.NewDecoder(picture); ; {
		if _, err := parser.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "gormsessions-bench-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestOnly profiles one contestant, and writes no results.
func TestOnly(t *testing.T) {
	dir := t.TempDir()
	profile := filepath.Join(dir, "cpu.out")
	o, err := parse([]string{"-db", "sqlite", "-rows", "50", "-rounds", "1", "-slice", "1ms", "-only", "/lookup/" + ours + "$", "-cpuprofile", profile}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), o, &out, null(t)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), rawName) || !strings.Contains(out.String(), ours) {
		t.Errorf("got %s, want %s alone", out.String(), ours)
	}
	if info, err := os.Stat(profile); err != nil || info.Size() == 0 {
		t.Errorf("no profile was written (%v)", err)
	}
}

// TestInterrupted removes what it has made, also when it is told to stop.
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o, err := parse([]string{"-db", "sqlite", "-rows", "50", "-markdown", "", "-svg", ""}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := run(ctx, o, io.Discard, null(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestWrongAnswer: a contestant that answers with another row fails the run.
func TestWrongAnswer(t *testing.T) {
	rows := newPopulation(10, 1)
	g := group{store: "none", name: "wrong", rows: rows, contestants: []contestant{{
		name: "liar", check: isRow,
		run: func(_ context.Context, in input) (any, error) {
			s := rows.session(in.i)
			s.Device += "?"
			return &s, nil
		},
	}}}
	if err := g.verify(t.Context(), []int{3}); err == nil {
		t.Error("a wrong answer was taken")
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-db", "oracle"}, {"-rows", "0"}, {"-rows", "15"}, {"-rows", "many"}, {"-rounds", "0"}, {"-slice", "0"}, {"-parallel", "0"},
		{"-only", "("}, {"-cpuprofile", "cpu.out"}, {"lookup"},
	} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

func null(t *testing.T) *os.File {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}
