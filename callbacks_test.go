package gormsessions_test

import (
	"path/filepath"
	"testing"

	"github.com/gormsessions/gormsessions"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// What GORM keeps of its callbacks is read by the names of its fields: where a new GORM
// has others, all goes by its builder, and this says so.
func TestAlone(t *testing.T) {
	db, err := gorm.Open(sqlite.Open(filepath.Join(t.TempDir(), "test.db")), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if pool, err := db.DB(); err == nil {
		defer pool.Close()
	}
	sessions := gormsessions.New[cachedSession](gormsessions.Config{})
	if err := db.Use(sessions); err != nil {
		t.Fatal(err)
	}
	alone := func(what string, wantQueries, wantCreates bool) {
		t.Helper()
		if queries, creates := gormsessions.Alone(sessions); queries != wantQueries || creates != wantCreates {
			t.Errorf("%s: alone in queries %v and creates %v, want %v and %v", what, queries, creates, wantQueries, wantCreates)
		}
	}
	alone("at first", true, true)
	nothing := func(*gorm.DB) {}
	steps := []struct {
		what             string
		change           func() error
		queries, creates bool
	}{
		{"beside another", func() error { return db.Callback().Query().After("gorm:query").Register("other", nothing) }, false, true},
		{"once that is removed", func() error { return db.Callback().Query().Remove("other") }, true, true},
		{"beside one of creates", func() error { return db.Callback().Create().Before("*").Register("other", nothing) }, true, false},
		{"with GORM's replaced", func() error { return db.Callback().Query().Replace("gorm:preload", nothing) }, false, false},
	}
	for _, s := range steps {
		if err := s.change(); err != nil {
			t.Fatal(err)
		}
		alone(s.what, s.queries, s.creates)
	}
}
