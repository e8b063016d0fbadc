package main

import (
	"context"

	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

// The groups, by name: goals and the picture refer to them.
const (
	lookupGroup   = "lookup"
	requestGroup  = "lookup-request"
	parallelGroup = "lookup-parallel"
	ownerGroup    = "owner"
	createGroup   = "create"
	listGroup     = "list"
	memoryGroup   = "memory"
	manyGroup     = "memory-parallel"
	scaleGroup    = "scale"
)

// The contestants that goals compare. Those of GORM and ours are there as they come
// and with PrepareStmt.
const (
	prepareStmt = ", PrepareStmt"
	ours        = "gormsessions Authenticate"
	oursOwner   = "gormsessions Authenticate, WithOwner"
	oursCreate  = "gormsessions Create"
	oursList    = "gormsessions List"
	oursCached  = "gormsessions Authenticate, cached"
	rawName     = "database/sql, prepared"
	rawJoinName = "database/sql, prepared join"
	twoQueries  = "GORM, two queries"
	gormstore   = "scs, gormstore"
)

// settings are a *gorm.DB as it comes, and one with PrepareStmt.
type settings struct {
	suffix  string
	config  gorm.Config
	plain   *gorm.DB // without the plugin
	plugged *gormsessions.Plugin[UserSession]
}

func (s *store) settings() ([]settings, error) {
	all := []settings{{suffix: ""}, {suffix: prepareStmt, config: gorm.Config{PrepareStmt: true}}}
	for i := range all {
		var err error
		if all[i].plain, err = s.gorm(all[i].config); err != nil {
			return nil, err
		}
		if all[i].plugged, err = s.plugin(all[i].config, config); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// lookups are all who look a session up by its token. With a request's context the
// stores of scs are left out, for they take none.
func (s *store) lookups(ctx context.Context, all []settings, request bool) ([]contestant, error) {
	raw, err := s.rawLookup(ctx)
	if err != nil {
		return nil, err
	}
	list := []contestant{raw}
	if s.native != nil {
		list = append(list, s.pgxLookup())
	}
	for _, a := range all {
		list = append(list,
			authenticate(ours+a.suffix, a.plugged),
			lookup("gormsessions Lookup"+a.suffix, a.plugged),
			gormTake("GORM Take"+a.suffix, a.plain),
			gormGenerics("GORM generics"+a.suffix, a.plain),
		)
		if !request {
			list = append(list, gormstoreFind(gormstore+a.suffix, a.plain))
		}
	}
	if !request {
		list = append(list, s.sqlStore())
		if s.redis != nil {
			list = append(list, s.redisStore())
		}
	}
	return list, nil
}

func (s *store) owners(ctx context.Context, all []settings) ([]contestant, error) {
	raw, err := s.rawJoin(ctx)
	list := []contestant{raw}
	for _, a := range all {
		list = append(list,
			authenticateWithOwner(oursOwner+a.suffix, a.plugged),
			gormJoins("GORM Joins"+a.suffix, a.plain),
			gormTwoQueries(twoQueries+a.suffix, a.plain),
			gormPreload("GORM Preload"+a.suffix, a.plain),
		)
	}
	return list, err
}

func (s *store) creates(ctx context.Context, all []settings) ([]contestant, error) {
	raw, err := s.rawCreate(ctx)
	if err != nil {
		return nil, err
	}
	list := []contestant{raw}
	fast := gorm.Config{PrepareStmt: true, SkipDefaultTransaction: true}
	plain, err := s.gorm(fast)
	if err != nil {
		return nil, err
	}
	plugged, err := s.plugin(fast, config)
	if err != nil {
		return nil, err
	}
	all = append(all[:len(all):len(all)], settings{suffix: prepareStmt + ", SkipDefaultTransaction", plain: plain, plugged: plugged})
	for _, a := range all {
		list = append(list,
			s.create(oursCreate+a.suffix, a.plugged),
			s.gormCreate("GORM Create"+a.suffix, a.plain),
			gormstoreCommit(gormstore+" Commit"+a.suffix, a.plain),
		)
	}
	return list, nil
}

func (s *store) lists(ctx context.Context, all []settings) ([]contestant, error) {
	raw, err := s.rawList(ctx)
	list_ := []contestant{raw}
	for _, a := range all {
		list_ = append(list_, list(oursList+a.suffix, a.plugged), gormList("GORM Find"+a.suffix, a.plain))
	}
	return list_, err
}

// groups are all that is measured on a store; the smaller ones only look up.
func (s *store) groups(ctx context.Context, largest bool, goroutines int) ([]group, error) {
	all, err := s.settings()
	if err != nil {
		return nil, err
	}
	plain, err := s.lookups(ctx, all, false)
	if err != nil {
		return nil, err
	}
	request, err := s.lookups(ctx, all, true)
	if err != nil {
		return nil, err
	}
	groups := []group{
		{name: lookupGroup, title: "Look a session up by its token", contestants: plain},
		{name: requestGroup, title: "The same with a context that can be cancelled, as a request's", contestants: request, request: true},
	}
	if goroutines > 1 {
		groups = append(groups, group{name: parallelGroup, title: "The same in parallel, by wall clock", contestants: plain, goroutines: goroutines})
	}
	if largest {
		owners, err := s.owners(ctx, all)
		if err != nil {
			return nil, err
		}
		lists, err := s.lists(ctx, all)
		if err != nil {
			return nil, err
		}
		creates, err := s.creates(ctx, all)
		if err != nil {
			return nil, err
		}
		groups = append(groups,
			group{name: ownerGroup, title: "Look it up with its owner's row", contestants: owners},
			group{name: listGroup, title: "List an owner's ten active sessions, the newest first", contestants: lists},
			group{name: createGroup, title: "Create a session", contestants: creates, slices: 3},
		)
	}
	for i := range groups {
		groups[i].store, groups[i].size, groups[i].rows = s.title, s.rows.rows, s.rows
	}
	return groups, nil
}

// scale compares Authenticate in tables of all sizes, the smallest first.
func scale(stores []*store) (group, error) {
	g := group{name: scaleGroup, title: "Authenticate among more rows", store: stores[0].title}
	for _, s := range stores {
		sessions, err := s.plugin(gorm.Config{}, config)
		if err != nil {
			return group{}, err
		}
		c := authenticate("among "+thousands(s.rows.rows), sessions)
		c.rows = &s.rows
		g.contestants = append(g.contestants, c)
		g.rows, g.size = s.rows, s.rows.rows
	}
	return g, nil
}

// memory is what costs no query: the cached contestant and JWTs.
func (s *store) memory(goroutines int) ([]group, error) {
	const most = 20_000
	g := group{name: memoryGroup, title: "Without a query: the cache, and JWTs", store: s.title, size: s.rows.rows, rows: s.rows,
		pool: min(s.rows.rows, most), uneven: true}
	var err error
	if g.contestants, err = jwts(s.rows, g.pool); err != nil {
		return nil, err
	}
	c, err := s.cached(oursCached)
	if err != nil {
		return nil, err
	}
	if c != nil {
		g.contestants = append(g.contestants, *c)
	}
	groups := []group{g}
	if goroutines > 1 {
		g.name, g.title, g.goroutines = manyGroup, "The same in parallel, by wall clock", goroutines
		groups = append(groups, g)
	}
	return groups, nil
}
