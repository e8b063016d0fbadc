package main

import (
	"slices"
	"strconv"
)

// spread is a median and its quartiles.
type spread struct{ low, median, high float64 }

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	at := func(share float64) float64 {
		place := share * float64(len(sorted)-1)
		below := int(place)
		above := min(below+1, len(sorted)-1)
		return sorted[below] + (sorted[above]-sorted[below])*(place-float64(below))
	}
	return spread{at(0.25), at(0.5), at(0.75)}
}

func nanoseconds(s sample) float64 { return s.ns }
func allocations(s sample) float64 { return s.allocs }
func bytesOf(s sample) float64     { return s.bytes }

// of is what a contestant needed, over the rounds.
func (r *result) of(i int, what func(sample) float64) spread {
	values := make([]float64, len(r.samples[i]))
	for round, s := range r.samples[i] {
		values[round] = what(s)
	}
	return spreadOf(values)
}

// ratio is how many times as long as another a contestant took in the same round.
func (r *result) ratio(i, to int) spread {
	values := make([]float64, min(len(r.samples[i]), len(r.samples[to])))
	for round := range values {
		values[round] = r.samples[i][round].ns / r.samples[to][round].ns
	}
	return spreadOf(values)
}

// index is the place of a contestant, or -1.
func (r *result) index(name string) int {
	return slices.IndexFunc(r.contestants, func(c contestant) bool { return c.name == name })
}

// thousands writes 1000000 as 1,000,000.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
