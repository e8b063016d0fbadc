package main

import (
	"fmt"
	"math"
)

// goal is something that the design asks for, and is computed from the samples of
// the largest table.
type goal struct {
	title  string
	group  string
	of, to string
	limits map[string]float64 // by database; "" is any
	value  func(r *result, of, to int) float64
	format string
	// settings are those of GORM that it is to hold for; alike: the other side has
	// the same one.
	settings []string
	alike    bool
}

func ratioGoal(r *result, of, to int) float64 { return r.ratio(of, to).median }
func moreAllocations(r *result, of, to int) float64 {
	return math.Round(r.of(of, allocations).median) - math.Round(r.of(to, allocations).median)
}
func microseconds(r *result, of, _ int) float64  { return r.of(of, nanoseconds).median / 1000 }
func allocationsOf(r *result, of, _ int) float64 { return math.Round(r.of(of, allocations).median) }

var (
	bothSettings = []string{"", prepareStmt}
	allSettings  = []string{"", prepareStmt, prepareStmt + ", SkipDefaultTransaction"}
	oneSetting   = []string{""}
)

// goals are the ratios to reach. What is said here is what was asked for; whether it
// is met is computed.
var goals = []goal{
	{"Authenticate / prepared SQL", lookupGroup, ours, rawName, map[string]float64{"SQLite": 1.10, "PostgreSQL": 1.03}, ratioGoal, "%.2f", bothSettings, false},
	{"… with a request's context", requestGroup, ours, rawName, map[string]float64{"SQLite": 1.10, "PostgreSQL": 1.03}, ratioGoal, "%.2f", bothSettings, false},
	{"… allocations more", lookupGroup, ours, rawName, map[string]float64{"SQLite": 8, "PostgreSQL": 8}, moreAllocations, "%.0f", bothSettings, false},
	{"… allocations more, with a request's context", requestGroup, ours, rawName, map[string]float64{"SQLite": 8, "PostgreSQL": 8}, moreAllocations, "%.0f", bothSettings, false},
	{"Authenticate with owner / prepared join", ownerGroup, oursOwner, rawJoinName, map[string]float64{"SQLite": 1.10, "PostgreSQL": 1.05}, ratioGoal, "%.2f", bothSettings, false},
	{"Authenticate with owner / GORM's two queries", ownerGroup, oursOwner, twoQueries, map[string]float64{"SQLite": 0.58, "PostgreSQL": 0.60}, ratioGoal, "%.2f", bothSettings, true},
	{"Authenticate / scs gormstore's find", lookupGroup, ours, gormstore, map[string]float64{"SQLite": 0.65, "PostgreSQL": 0.85}, ratioGoal, "%.2f", bothSettings, true},
	{"Create / prepared INSERT", createGroup, oursCreate, rawName, map[string]float64{"": 1.10}, ratioGoal, "%.2f", allSettings, false},
	{"Create / scs gormstore's commit", createGroup, oursCreate, gormstore + " Commit", map[string]float64{"": 0.45}, ratioGoal, "%.2f", allSettings, true},
	{"List an owner's ten / prepared SQL", listGroup, oursList, rawName, map[string]float64{"": 1.25}, ratioGoal, "%.2f", bothSettings, false},
	{"cached Authenticate / JWT, HS256", memoryGroup, oursCached, "JWT, HS256", map[string]float64{"": 1.0 / 12}, ratioGoal, "%.4f", oneSetting, false},
	{"cached Authenticate / JWT, ES256", memoryGroup, oursCached, "JWT, ES256", map[string]float64{"": 1.0 / 100}, ratioGoal, "%.4f", oneSetting, false},
	{"cached Authenticate / JWT, EdDSA", memoryGroup, oursCached, "JWT, EdDSA", map[string]float64{"": 1.0 / 100}, ratioGoal, "%.4f", oneSetting, false},
	{"cached Authenticate, µs", memoryGroup, oursCached, oursCached, map[string]float64{"": 1}, microseconds, "%.2f", oneSetting, false},
	{"cached Authenticate, allocations", memoryGroup, oursCached, oursCached, map[string]float64{"": 0}, allocationsOf, "%.0f", oneSetting, false},
	{"stretch: Authenticate / prepared SQL, with a request's context", requestGroup, ours, rawName, map[string]float64{"SQLite": 0.75}, ratioGoal, "%.2f", bothSettings, false},
}

// scaleLimit is for 10 million rows against 10 thousand.
const scaleLimit = 1.5

// verdict is a goal beside what was measured.
type verdict struct {
	title, store, limit, measured string
	byHand                        string // what prepared SQL has of that ratio, where it is another
	met                           bool
}

func (v verdict) word() string {
	switch {
	case v.measured == "":
		return "not measured"
	case v.met:
		return "met"
	}
	return "**not met**"
}

// verdicts judge all goals. One of which a side was not measured says so.
func (r *report) verdicts() []verdict {
	var list []verdict
	for _, g := range goals {
		for _, store := range r.stores() {
			limit, ok := g.limits[store]
			if any, forAll := g.limits[""]; !ok && forAll {
				limit, ok = any, g.group != memoryGroup || store == r.stores()[0]
			}
			if !ok {
				continue
			}
			for _, setting := range g.settings {
				v := verdict{title: g.title, store: store, limit: "≤ " + fmt.Sprintf(g.format, limit)}
				if len(g.settings) > 1 {
					v.title += map[string]string{"": ", as it comes"}[setting] + setting
				}
				if g.group == memoryGroup {
					v.store = ""
				}
				if res := r.largest(store, g.group); res != nil {
					to := g.to
					if g.alike {
						to += setting
					}
					if of, to := res.index(g.of+setting), res.index(to); of >= 0 && to >= 0 {
						value := g.value(res, of, to)
						v.measured, v.met = fmt.Sprintf(g.format, value), value <= limit
						if to > 0 && g.group != memoryGroup {
							v.byHand = fmt.Sprintf(g.format, g.value(res, 0, to))
						}
					}
				}
				list = append(list, v)
			}
		}
	}
	for i := range r.results {
		if res := &r.results[i]; res.name == scaleGroup {
			last := len(res.contestants) - 1
			value := res.ratio(last, 0).median
			list = append(list, verdict{
				title: fmt.Sprintf("Authenticate %s / %s rows", res.contestants[last].name, res.contestants[0].name),
				store: res.store, limit: fmt.Sprintf("≤ %.2f at 10,000,000", scaleLimit), measured: fmt.Sprintf("%.2f", value), met: value <= scaleLimit,
			})
		}
	}
	return list
}
