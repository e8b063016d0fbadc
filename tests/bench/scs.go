package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/mysqlstore"
	"github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/sqlite3store"
	"gorm.io/gorm"
)

// The stores of scs find three columns by the token, and hand out the bytes of one
// of them, which scs would then decode: that is not counted. They take no context.

const sqlite3storeTable = "scs_sessions"

// storeSession is the table of scs's stores. Its gormstore is not to be had as a
// module, so the same calls of GORM are made here that its documentation tells of.
type storeSession struct {
	Token  string    `gorm:"primaryKey;type:varchar(43)"`
	Data   []byte    `gorm:"not null"`
	Expiry time.Time `gorm:"not null;index"`
}

func (storeSession) TableName() string { return "sessions" }

// isKept checks the bytes that a store has found.
func isKept(answer any, in input) error {
	text, _ := answer.([]byte)
	var got kept
	if err := json.Unmarshal(text, &got); err != nil {
		return err
	}
	again, err := json.Marshal(got)
	want := in.rows.session(in.i)
	if err == nil && string(again) != string(blob(&want)) {
		err = fmt.Errorf("got %s, want %s", text, blob(&want))
	}
	return err
}

// find makes a contestant of a store's Find.
func find(name string, find func(ctx context.Context, key string) ([]byte, bool, error)) contestant {
	return contestant{name: name, check: isKept, run: func(ctx context.Context, in input) (any, error) {
		text, found, err := find(ctx, storeKey(in.token))
		if err == nil && !found {
			err = errNotFound
		}
		return text, err
	}}
}

func gormstoreFind(name string, db *gorm.DB) contestant {
	return find(name, func(_ context.Context, key string) ([]byte, bool, error) {
		session := &storeSession{}
		found := db.Where("token = ? AND expiry >= ?", key, time.Now()).Limit(1).Find(session)
		return session.Data, found.RowsAffected > 0, found.Error
	})
}

// sqlStore is the store of scs for the database without GORM.
func (s *store) sqlStore() contestant {
	switch s.kind {
	case "sqlite":
		store := sqlite3store.NewWithConfig(s.pool, sqlite3store.Config{TableName: sqlite3storeTable})
		return find("scs, sqlite3store", func(_ context.Context, key string) ([]byte, bool, error) { return store.Find(key) })
	case "postgres":
		store := pgxstore.NewWithCleanupInterval(s.native, 0)
		return find("scs, pgxstore", func(_ context.Context, key string) ([]byte, bool, error) { return store.Find(key) })
	}
	store := mysqlstore.NewWithCleanupInterval(s.pool, 0)
	return find("scs, mysqlstore", func(_ context.Context, key string) ([]byte, bool, error) { return store.Find(key) })
}

func (s *store) redisStore() contestant {
	return find("scs, goredisstore (Redis)", goredisstore.NewWithPrefix(s.redis, s.prefix).FindCtx)
}

// gormstoreCommit stores a new session of scs.
func gormstoreCommit(name string, db *gorm.DB) contestant {
	return contestant{
		name: name,
		run: func(_ context.Context, in input) (any, error) {
			session := newSession(in)
			err := db.Where(storeSession{Token: storeKey(string(session.Token))}).
				Assign(storeSession{Data: blob(session), Expiry: *session.ExpiresAt}).
				FirstOrCreate(&storeSession{}).Error
			return session, err
		},
		check: func(answer any, _ input) error {
			want, _ := answer.(*UserSession)
			var got storeSession
			if err := db.Take(&got, "token = ?", storeKey(string(want.Token))).Error; err != nil {
				return err
			}
			if string(got.Data) != string(blob(want)) {
				return fmt.Errorf("got %s, want %s", got.Data, blob(want))
			}
			return nil
		},
	}
}
