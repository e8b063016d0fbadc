package main

import (
	"context"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
	"gorm.io/gorm"
)

// plugin is registered on a *gorm.DB of its own, over the table that is there.
func (s *store) plugin(db gorm.Config, config gormsessions.Config) (*gormsessions.Plugin[UserSession], error) {
	config.SkipMigrate = config.Cache == nil // a cache may need something in the database
	opened, err := s.gorm(db)
	if err != nil {
		return nil, err
	}
	sessions := gormsessions.New[UserSession](config)
	return sessions, opened.Use(sessions)
}

func authenticate(name string, sessions *gormsessions.Plugin[UserSession]) contestant {
	return contestant{name: name, check: isRow, run: func(ctx context.Context, in input) (any, error) {
		return sessions.Authenticate(ctx, in.token)
	}}
}

func lookup(name string, sessions *gormsessions.Plugin[UserSession]) contestant {
	return contestant{name: name, check: isRow, run: func(ctx context.Context, in input) (any, error) {
		return sessions.Lookup(ctx, in.token)
	}}
}

func authenticateWithOwner(name string, sessions *gormsessions.Plugin[UserSession]) contestant {
	return contestant{name: name, check: isRowWithOwner, run: func(ctx context.Context, in input) (any, error) {
		return sessions.Authenticate(ctx, in.token, gormsessions.WithOwner)
	}}
}

func list(name string, sessions *gormsessions.Plugin[UserSession]) contestant {
	return contestant{name: name, check: isListOfOwner, run: func(ctx context.Context, in input) (any, error) {
		return sessions.List(ctx, gormsessions.ForUser(in.rows.owner(in.i)), gormsessions.Active)
	}}
}

func (s *store) create(name string, sessions *gormsessions.Plugin[UserSession]) contestant {
	return contestant{name: name, check: s.isStored, run: func(ctx context.Context, in input) (any, error) {
		session := signIn(in)
		err := sessions.Create(ctx, session)
		return session, err
	}}
}

// cached authenticates with a cache, where every session has been asked for before.
func (s *store) cached(name string) (*contestant, error) {
	cache, err := sessioncache.New(sessioncache.Config{TTL: gormsessions.Never, MaxEntries: 2 << 20})
	if err != nil {
		return nil, err
	}
	config := config
	config.Cache = cache
	sessions, err := s.plugin(gorm.Config{}, config)
	if err != nil {
		return nil, err
	}
	c := authenticate(name, sessions)
	return &c, nil
}
