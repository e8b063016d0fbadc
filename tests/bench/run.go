package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// sample is one slice of one contestant, per operation.
type sample struct{ ns, allocs, bytes float64 }

// result is a group with its samples: one for each contestant and round.
type result struct {
	group
	samples [][]sample // by contestant, as in the group
}

// runner measures groups.
type runner struct {
	rounds int
	slice  time.Duration
	only   *regexp.Regexp // nil: all
	random *rand.Rand
	bar    *progress
	// profile, if set, takes a CPU profile from the first measurement on.
	profile io.Writer
}

// inputs draws what the contestants are asked: the same rows, in the same order.
func (r *runner) inputs(g *group, n int) []int {
	pool := g.pool
	if pool == 0 {
		pool = g.rows.rows
	}
	list := make([]int, n)
	for i := range list {
		list[i] = r.random.IntN(pool)
	}
	return list
}

// inputsOf makes the inputs of a contestant.
func (g *group) inputsOf(c *contestant, drawn []int) []input {
	rows := g.rows
	if c.rows != nil {
		rows = *c.rows
	}
	list := make([]input, len(drawn))
	for i, n := range drawn {
		list[i] = rows.input(n)
	}
	return list
}

// verify asks each contestant for the same rows and compares the answers with what
// was stored.
func (g *group) verify(ctx context.Context, drawn []int) error {
	for i := range g.contestants {
		c := &g.contestants[i]
		for _, in := range g.inputsOf(c, drawn) {
			answer, err := c.run(ctx, in)
			if err != nil {
				return fmt.Errorf("%s: row %d: %w", g.id(c), in.i, err)
			}
			if err := c.check(answer, in); err != nil {
				return fmt.Errorf("%s: wrong answer for row %d: %w", g.id(c), in.i, err)
			}
		}
	}
	return nil
}

// measure runs a group: in each round every contestant, in an order that is drawn
// anew, for a slice.
func (r *runner) measure(ctx context.Context, g group) (result, error) {
	if r.only != nil {
		g.contestants = slices.Clone(g.contestants)
		g.contestants = slices.DeleteFunc(g.contestants, func(c contestant) bool { return !r.only.MatchString(g.id(&c)) })
		if len(g.contestants) == 0 {
			return result{group: g}, nil
		}
	}
	res := result{group: g, samples: make([][]sample, len(g.contestants))}
	r.bar.begin(fmt.Sprintf("%s, %s rows: %s", g.store, thousands(g.size), g.name), len(g.contestants)*(r.rounds+1))
	defer r.bar.end()
	if err := g.verify(ctx, r.inputs(&g, 20)); err != nil {
		return res, err
	}
	counts, err := r.counts(ctx, &g)
	if err != nil {
		return res, err
	}
	if r.profile != nil {
		if err := pprof.StartCPUProfile(r.profile); err != nil {
			return res, err
		}
		r.profile = nil
	}
	for range r.rounds {
		if err := r.round(ctx, &res, counts); err != nil {
			return res, err
		}
		r.bar.add(len(g.contestants))
	}
	return res, nil
}

// passes is into how many pieces a slice is cut, so that what disturbs the machine
// meanwhile disturbs all contestants alike.
const passes = 8

// warmups are operations before each piece that are not counted: a server's process,
// and a connection, that others have not used meanwhile is slow to wake.
const warmups = 10

// round runs a slice of each contestant: a piece of each, in an order drawn anew,
// and then the next.
func (r *runner) round(ctx context.Context, res *result, counts []int) error {
	g := &res.group
	drawn := r.inputs(g, slices.Max(counts)+warmups)
	prepared := map[population][]input{}
	sums := make([]sample, len(counts))
	order := make([]int, len(counts))
	for i := range order {
		order[i] = i
	}
	for pass := range passes {
		r.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, i := range order {
			if err := ctx.Err(); err != nil {
				return err
			}
			c := &g.contestants[i]
			rows := g.rows
			if c.rows != nil {
				rows = *c.rows
			}
			if prepared[rows] == nil {
				prepared[rows] = g.inputsOf(c, drawn)
			}
			inputs := prepared[rows]
			piece := inputs[counts[i]*pass/passes : counts[i]*(pass+1)/passes]
			runtime.GC() // the garbage that others left
			if err := g.slice(c, inputs[len(inputs)-warmups:]); err != nil {
				return fmt.Errorf("%s: %w", g.id(c), err)
			}
			s, err := g.time(c, piece)
			if err != nil {
				return fmt.Errorf("%s: %w", g.id(c), err)
			}
			sums[i].add(s, float64(len(piece))/float64(counts[i]))
		}
	}
	for i, s := range sums {
		res.samples[i] = append(res.samples[i], s)
	}
	return nil
}

func (s *sample) add(piece sample, share float64) {
	s.ns += piece.ns * share
	s.allocs += piece.allocs * share
	s.bytes += piece.bytes * share
}

// counts says how many operations make a slice: as many for everybody, by what
// the first takes, but in uneven groups, where each has its own. It warms up all of them.
func (r *runner) counts(ctx context.Context, g *group) ([]int, error) {
	const fewest, most = 5 * passes, 200_000
	counts := make([]int, len(g.contestants))
	if err := r.fill(ctx, g); err != nil {
		return nil, err
	}
	for i := range g.contestants {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c := &g.contestants[i]
		n, ns := fewest, 0.0
		for {
			s, err := g.time(c, g.inputsOf(c, r.inputs(g, n)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", g.id(c), err)
			}
			ns = s.ns
			if n >= most || float64(n)*ns > float64(r.slice)/4 {
				break
			}
			n *= 4
		}
		counts[i] = min(max(int(float64(r.slice)/ns)*max(g.slices, 1), fewest), most)
		if !g.uneven {
			counts[i] = counts[0]
		}
		r.bar.add(1)
	}
	return counts, nil
}

// fill asks once for every row of a group that has a pool of them.
func (r *runner) fill(ctx context.Context, g *group) error {
	for i := range g.contestants {
		c := &g.contestants[i]
		for n := range g.pool {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := c.run(ctx, g.rows.input(n)); err != nil {
				return fmt.Errorf("%s: %w", g.id(c), err)
			}
		}
	}
	return nil
}

// time runs a slice.
func (g *group) time(c *contestant, inputs []input) (sample, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	err := g.slice(c, inputs)
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	n := float64(len(inputs))
	return sample{
		ns:     float64(took) / n,
		allocs: float64(after.Mallocs-before.Mallocs) / n,
		bytes:  float64(after.TotalAlloc-before.TotalAlloc) / n,
	}, err
}

func (g *group) slice(c *contestant, inputs []input) error {
	work := func(inputs []input) error {
		ctx := context.Background()
		if g.request {
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			defer cancel()
		}
		for _, in := range inputs {
			if _, err := c.run(ctx, in); err != nil {
				return err
			}
		}
		return nil
	}
	if g.goroutines <= 1 {
		return work(inputs)
	}
	// Each takes the next few until none are left.
	few := max(1, min(16, len(inputs)/g.goroutines/4))
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, g.goroutines)
	for i := range errs {
		wg.Go(func() {
			for errs[i] == nil {
				end := int(next.Add(int64(few)))
				if end-few >= len(inputs) {
					return
				}
				errs[i] = work(inputs[end-few : min(end, len(inputs))])
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
