// Command bench measures gormsessions against what else looks sessions up: SQL by
// hand, plain GORM, the stores of scs, JWTs.
//
//	go -C tests run ./bench                                      # a table, bench/RESULTS.md, ../docs/how-fast.svg
//	go -C tests run ./bench -rows 10000,1000000,10000000         # among ten million rows too
//	go -C tests run ./bench -db sqlite -rows 10000 -rounds 50 -cpuprofile cpu.out -only 'lookup/gormsessions Authenticate$'
//
// Everything is in one process and interleaved: each round runs every contestant
// for a short slice, cut into pieces that take turns in an order that is drawn anew,
// and asks all of them for the same rows. What is told are medians, of times and of the ratios within a round.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	dbs        []string
	rows       []int // ascending
	rounds     int
	slice      time.Duration
	parallel   int
	seed       uint64
	only       *regexp.Regexp
	cpuprofile string
	markdown   string
	svg        string
}

func main() {
	// An interrupt ends the run, which then removes what it has made; another one,
	// after a second, ends it at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	o, err := parse(os.Args[1:], os.Stderr)
	if err == nil {
		err = run(ctx, o, os.Stdout, os.Stderr)
	}
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dbs := flags.String("db", "sqlite,postgres", "`databases`: sqlite, postgres, mariadb")
	rows := flags.String("rows", "10000,1000000", "`sizes` of the table; 10000000 takes a while")
	flags.IntVar(&o.rounds, "rounds", 12, "rounds; a median needs at least 10")
	flags.DurationVar(&o.slice, "slice", 40*time.Millisecond, "how long a contestant runs in a round")
	flags.IntVar(&o.parallel, "parallel", 2*runtime.GOMAXPROCS(0), "goroutines of the parallel groups; 1 leaves them out")
	flags.Uint64Var(&o.seed, "seed", 1, "of the rows, and of the order in which they are asked for")
	only := flags.String("only", "", "measure only contestants that match this `regexp`, as SQLite/10000/lookup/gormsessions Authenticate; nothing is written")
	flags.StringVar(&o.cpuprofile, "cpuprofile", "", "write a CPU profile of what -only names to this `file`")
	flags.StringVar(&o.markdown, "markdown", "bench/RESULTS.md", "write the results to this `file`; empty: do not")
	flags.StringVar(&o.svg, "svg", "../docs/how-fast.svg", "draw them to this `file`; empty: do not")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("what is %q?", flags.Arg(0))
	}
	for name := range strings.SplitSeq(*dbs, ",") {
		if titles[name] == "" {
			return o, fmt.Errorf("-db: no database is called %q: sqlite, postgres, mariadb", name)
		}
		o.dbs = append(o.dbs, name)
	}
	for text := range strings.SplitSeq(*rows, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < perOwner || n%perOwner != 0 {
			return o, fmt.Errorf("-rows: %q is no multiple of %d", text, perOwner)
		}
		o.rows = append(o.rows, n)
	}
	slices.Sort(o.rows)
	o.rows = slices.Compact(o.rows)
	if o.rounds < 1 || o.slice <= 0 || o.parallel < 1 {
		return o, errors.New("-rounds, -slice and -parallel are at least 1")
	}
	if *only != "" {
		if o.only, err = regexp.Compile(*only); err != nil {
			return o, fmt.Errorf("-only: %w", err)
		}
		o.markdown, o.svg = "", ""
	}
	if o.cpuprofile != "" && o.only == nil {
		return o, errors.New("-cpuprofile needs -only: a profile of all contestants together says little")
	}
	return o, nil
}

// run makes the databases, measures and reports.
func run(ctx context.Context, o options, stdout io.Writer, stderr *os.File) (err error) {
	for _, file := range []string{o.markdown, o.svg} {
		if file == "" {
			continue
		}
		if info, err := os.Stat(filepath.Dir(file)); err != nil || !info.IsDir() {
			return fmt.Errorf("%s is no place for a file: run it as go -C tests run ./bench, or give -markdown and -svg", file)
		}
	}
	began := time.Now()
	bar := newProgress(stderr)
	r := &runner{rounds: o.rounds, slice: o.slice, only: o.only, bar: bar, random: rand.New(rand.NewPCG(o.seed, 0))}
	rep := report{options: o, environment: environment()}
	var profile *os.File
	if o.cpuprofile != "" {
		if profile, err = os.Create(o.cpuprofile); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, profile.Close()) }()
		r.profile = profile
	}
	for n, kind := range o.dbs {
		if err := r.database(ctx, o, kind, n == 0, &rep); err != nil {
			return err
		}
	}
	pprof.StopCPUProfile() // nothing, where none was started
	rep.took = time.Since(began)
	if err := rep.print(stdout); err != nil {
		return err
	}
	return rep.save()
}

// database measures all that concerns one database, and removes it.
func (r *runner) database(ctx context.Context, o options, kind string, first bool, rep *report) (err error) {
	var stores []*store
	defer func() {
		for _, s := range slices.Backward(stores) {
			err = errors.Join(err, s.close())
		}
	}()
	for _, n := range o.rows {
		s, err := openStore(ctx, kind, newPopulation(n, o.seed), max(o.parallel, 2)+1, r.bar)
		stores = append(stores, s)
		if err != nil {
			return err
		}
	}
	var groups []group
	for i, s := range stores {
		own, err := s.groups(ctx, i == len(stores)-1, o.parallel)
		if err != nil {
			return err
		}
		groups = append(groups, own...)
	}
	if len(stores) > 1 {
		g, err := scale(stores)
		if err != nil {
			return err
		}
		groups = append(groups, g)
	}
	if first {
		own, err := stores[len(stores)-1].memory(o.parallel)
		if err != nil {
			return err
		}
		groups = append(groups, own...)
	}
	rep.databases = append(rep.databases, stores[0].title+" "+stores[0].version)
	for _, g := range groups {
		res, err := r.measure(ctx, g)
		if err != nil {
			return err
		}
		if len(res.contestants) > 0 {
			rep.results = append(rep.results, res)
		}
	}
	return nil
}
