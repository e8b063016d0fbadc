package conformance

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
	"gorm.io/gorm/schema"
)

// Shapes that cannot be sessions.
type (
	OwnID struct {
		gormsessions.Session[User, uint]
		ID uint
	}
	WithModel struct {
		gorm.Model
		gormsessions.Session[User, uint]
	}
	ByPointer struct {
		*gormsessions.Session[User, uint]
	}
	HidesExpiry struct {
		gormsessions.Session[User, uint]
		ExpiresAt string
	}
	HidesColumn struct {
		gormsessions.Session[User, uint]
		Other string `gorm:"column:revoked_at"`
	}
	HidesOwner struct {
		gormsessions.Session[User, uint]
		OwnerID string
	}
	SecondKey struct {
		gormsessions.Session[User, uint]
		Tenant string `gorm:"primaryKey"`
	}
	WrongKey struct {
		gormsessions.Session[User, int64]
	}
	WrongKeyText struct {
		gormsessions.Session[User, string]
	}
	Pair struct {
		A, B uint `gorm:"primaryKey"`
	}
	PairKey struct {
		gormsessions.Session[Pair, uint]
	}
	NoStruct struct {
		gormsessions.Session[string, uint]
	}
	PointerOwner struct {
		gormsessions.Session[*User, uint]
	}
	PointerKey struct {
		gormsessions.Session[User, *uint]
	}
	SameTable struct {
		gormsessions.Session[User, uint]
	}
	Both struct {
		A gormsessions.Base `gorm:"embedded;embeddedPrefix:a_"`
		B gormsessions.Base `gorm:"embedded;embeddedPrefix:b_"`
	}
	Ignored struct {
		gormsessions.Session[User, uint] `gorm:"-"`
		Name                             string
	}
)

func (Both) SessionBase() *gormsessions.Base { return nil }

func (SameTable) TableName() string { return "user_sessions" }

// SideUser has two sides of the association.
type (
	SideUser struct {
		ID       uint
		Current  *SideSession  `gorm:"foreignKey:OwnerID"`
		Sessions []SideSession `gorm:"foreignKey:OwnerID"`
	}
	SideSession struct {
		gormsessions.Session[SideUser, uint]
	}
)

// LogLine refers to a session.
type (
	Logged struct {
		gormsessions.Session[User, uint]
		Lines []LogLine
	}
	LogLine struct {
		ID       uint
		LoggedID uuid.UUID
		Text     string
	}
)

// Link refers to a session, and goes with it.
type (
	LinkedUser struct {
		ID       uint
		Sessions []Linked `gorm:"foreignKey:OwnerID"`
	}
	Linked struct {
		gormsessions.Session[LinkedUser, uint]
		Links []Link `gorm:"constraint:OnDelete:CASCADE"`
	}
	Link struct {
		ID       uint
		LinkedID string `gorm:"size:191"`
	}
)

// HasClient has an association of its own.
type (
	Client    struct{ ID uint }
	HasClient struct {
		gormsessions.Session[User, uint]
		ClientID *uint
		Client   *Client
	}
)

// Grown is Grows after a release that added a field.
type (
	Grows struct {
		gormsessions.Session[User, uint]
	}
	Grown struct {
		gormsessions.Session[User, uint]
		Device string `gorm:"index"`
	}
)

func (Grows) TableName() string { return "grows" }
func (Grown) TableName() string { return "grows" }

var ddl = regexp.MustCompile(`^(CREATE|ALTER|DROP|COMMENT)`)

func isDDL(sql string) bool { return ddl.MatchString(sql) }

func refusedShape[T any, P interface {
	*T
	gormsessions.Model
}](s suite, t *testing.T, db *gorm.DB, says ...string) {
	t.Helper()
	p := gormsessions.New[T, P](gormsessions.Config{})
	wantText(t, p.Name(), db.Use(p), append(says, "gormsessions: ")...)
	if _, ok := db.Plugins[p.Name()]; ok {
		t.Errorf("%s stayed registered", p.Name())
	}
}

// sixteenNodes start on one empty database at once, and each migrates it.
func (s suite) sixteenNodes(t *testing.T, migrate func(*gorm.DB) error) ([]*gorm.DB, []error) {
	t.Helper()
	dialect, c := s.Dialect(t), newClock()
	nodes, errs := make([]*gorm.DB, 16), make([]error, 16)
	for i := range nodes {
		nodes[i] = s.again(t, dialect, c, &recorder{})
	}
	var wg sync.WaitGroup
	for i, db := range nodes {
		wg.Go(func() { errs[i] = migrate(db) })
	}
	wg.Wait()
	return nodes, errs
}

func (s suite) migrate(t *testing.T) {
	t.Run("SecondTimeChangesNothing", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		rich := gormsessions.New[Rich](gormsessions.Config{})
		must(t, e.db.Use(rich))
		must(t, e.db.Use(gormsessions.New[Named](gormsessions.Config{})))
		named := e.db.Plugins[gormsessions.New[Named](gormsessions.Config{}).Name()].(*gormsessions.Plugin[Named])
		session := e.sign()
		for name, migrate := range map[string]func() error{
			"UserSession": func() error { return e.sessions.Migrate(e.ctx) },
			"Rich":        func() error { return rich.Migrate(e.ctx) },
			"Named":       func() error { return named.Migrate(e.ctx) },
		} {
			statements := e.log.since(func() { must(t, migrate()) })
			if i := slices.IndexFunc(statements, isDDL); i >= 0 {
				t.Errorf("%s: migrating twice runs %s", name, statements[i])
			}
			if len(statements) == 0 {
				t.Error("migrating looked at nothing")
			}
		}
		e.authenticate(session)
		must(t, e.sessions.Drop(e.ctx))
		want(t, "table after Drop", e.db.Migrator().HasTable(&UserSession{}), false)
		want(t, "owner's table after Drop", e.db.Migrator().HasTable(&User{}), true)
		must(t, e.sessions.Drop(e.ctx))
		must(t, e.sessions.Migrate(e.ctx))
		e.authenticate(e.sign())
	})

	t.Run("Columns", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		types, err := e.db.Migrator().ColumnTypes(&UserSession{})
		must(t, err)
		kind := map[string]string{}
		for _, c := range types {
			full, ok := c.ColumnType()
			if !ok {
				full = c.DatabaseTypeName()
			}
			kind[c.Name()] = strings.ToLower(full)
		}
		for column, byDialect := range map[string]map[string]string{
			"id":           {"sqlite": "text", "postgres": "uuid", "mysql": "uuid"},
			"token_digest": {"sqlite": "blob", "postgres": "bytea", "mysql": "varbinary(64)"},
			"expires_at":   {"sqlite": "datetime", "postgres": "timestamp", "mysql": "datetime(6)"},
			"data":         {"sqlite": "json", "postgres": "jsonb", "mysql": "longtext"}, // MariaDB's JSON
		} {
			if got, wanted := kind[column], byDialect[e.db.Name()]; !strings.HasPrefix(got, wanted) {
				t.Errorf("%s is %s, want %s", column, got, wanted)
			}
		}
		for _, column := range []string{"OwnerID", "ExpiresAt", "RevokedAt", "TokenDigest", "Device"} {
			want(t, "index on "+column, e.db.Migrator().HasIndex(&UserSession{}, column), true)
		}
	})

	t.Run("IDsAsMySQLKeepsThem", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		if e.db.Name() != "mysql" {
			t.Skip("MySQL has no type for UUIDs; MariaDB stands in")
		}
		e.exec("DROP TABLE {t}_retired_tokens")
		e.exec("ALTER TABLE {t} MODIFY id char(36) character set ascii collate ascii_bin NOT NULL")
		must(t, e.sessions.Migrate(e.ctx))
		v := e.sign()
		must(t, e.sessions.Rotate(e.ctx, v))
		want(t, "ID", e.authenticate(v, gormsessions.WithOwner).ID, v.ID)
		must(t, e.sessions.Extend(e.ctx, v))
		var found UserSession
		must(t, e.db.First(&found, "id = ?", v.ID).Error)
		n, err := e.sessions.Revoke(e.ctx, "x", gormsessions.WithID(v.ID))
		must(t, err)
		want(t, "revoked", n, 1)
		statements := e.log.since(func() { must(t, e.sessions.Migrate(e.ctx)) })
		if slices.ContainsFunc(statements, isDDL) {
			t.Errorf("migrating runs %v", statements)
		}
	})

	t.Run("LongName", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		wantText(t, "the other table's name", db.Use(gormsessions.New[LongNamed](gormsessions.Config{})), "_retired_tokens", "63", "shorter TableName")
	})

	t.Run("AddsAColumn", func(t *testing.T) {
		db, dialect, c, log := s.open(t)
		old := gormsessions.New[Grows](gormsessions.Config{})
		must(t, db.Use(old))
		u := User{Name: "ada"}
		must(t, db.Create(&u).Error)
		v := Grows{}
		v.OwnerID = u.ID
		must(t, db.Create(&v).Error)
		grown := gormsessions.New[Grown](gormsessions.Config{})
		must(t, s.again(t, dialect, c, log).Use(grown))
		// The old node goes on beside the new one.
		for range 3 {
			_, err := old.Authenticate(t.Context(), string(v.Token))
			must(t, err)
		}
		got, err := grown.Authenticate(t.Context(), string(v.Token))
		must(t, err)
		want(t, "the new column", got.Device, "")
	})

	t.Run("R31_NodesStartAtOnce", func(t *testing.T) {
		if s.Conns == 1 {
			t.Skip("nodes do not share one process's memory")
		}
		nodes, errs := s.sixteenNodes(t, func(db *gorm.DB) error {
			return db.Use(gormsessions.New[UserSession](gormsessions.Config{}))
		})
		for i, err := range errs {
			if err != nil {
				t.Errorf("node %d: %v", i, err)
			}
		}
		u := User{Name: "ada"}
		must(t, nodes[0].Create(&u).Error)
		v := UserSession{}
		v.OwnerID = u.ID
		must(t, nodes[15].Create(&v).Error)
	})

	t.Run("R31_TheOwnersTableIsNotAltered", func(t *testing.T) {
		db, _, _, log := s.open(t)
		table := tableOf(t, db, &User{})
		must(t, db.Exec("CREATE TABLE "+table+" (id "+map[string]string{"sqlite": "integer PRIMARY KEY", "postgres": "bigserial PRIMARY KEY", "mysql": "bigint unsigned PRIMARY KEY AUTO_INCREMENT"}[db.Name()]+")").Error)
		statements := log.since(func() { must(t, db.Use(gormsessions.New[UserSession](gormsessions.Config{}))) })
		for _, sql := range statements {
			if isDDL(sql) && regexp.MustCompile("(?i)(TABLE|ON) .?"+table+`\W`).MatchString(sql) {
				t.Errorf("the owner's table was touched: %s", sql)
			}
		}
		types, err := db.Migrator().ColumnTypes(table)
		must(t, err)
		want(t, "columns", len(types), 1)
	})

	t.Run("AfterGORMsOwnAutoMigrate", func(t *testing.T) {
		db, dialect, c, log := s.open(t)
		must(t, db.AutoMigrate(&User{}, &UserSession{}))
		sessions := gormsessions.New[UserSession](gormsessions.Config{})
		must(t, db.Use(sessions))
		for _, column := range []string{"OwnerID", "ExpiresAt", "RevokedAt", "TokenDigest", "Device"} {
			want(t, "index on "+column, db.Migrator().HasIndex(&UserSession{}, column), true)
		}
		// The next start, in the same order, has nothing to do with foreign keys.
		next := s.again(t, dialect, c, log)
		statements := log.since(func() {
			must(t, next.AutoMigrate(&User{}, &UserSession{}))
			must(t, next.Use(gormsessions.New[UserSession](gormsessions.Config{})))
		})
		for _, sql := range statements {
			if isDDL(sql) && strings.Contains(sql, "CONSTRAINT") {
				t.Errorf("the second start runs %s", sql)
			}
		}
		u := User{Name: "ada"}
		must(t, db.Create(&u).Error)
		v := UserSession{}
		v.OwnerID = u.ID
		must(t, db.Create(&v).Error)
		must(t, db.Exec("DELETE FROM "+tableOf(t, db, &User{})).Error)
		_, err := sessions.Authenticate(t.Context(), string(v.Token))
		want(t, "owner deleted", err, gormsessions.ErrNoSession)
		// And GORM's after the plugin's changes nothing of ours.
		must(t, db.AutoMigrate(&User{}, &UserSession{}))
		u = User{Name: "eve"}
		must(t, db.Create(&u).Error)
		v = UserSession{}
		v.OwnerID = u.ID
		must(t, db.Create(&v).Error)
		must(t, db.Exec("DELETE FROM "+tableOf(t, db, &User{})).Error)
		n, err := sessions.Count(t.Context())
		must(t, err)
		want(t, "sessions of deleted owners", n, 0)
	})

	t.Run("SkipMigrate", func(t *testing.T) {
		db, _, _, log := s.open(t)
		sessions := gormsessions.New[UserSession](gormsessions.Config{SkipMigrate: true})
		statements := log.since(func() { must(t, db.Use(sessions)) })
		if slices.ContainsFunc(statements, isDDL) {
			t.Errorf("SkipMigrate ran %v", statements)
		}
		want(t, "table", db.Migrator().HasTable(&UserSession{}), false)
		must(t, sessions.With(db.Session(&gorm.Session{DryRun: true})).Migrate(t.Context()))
		want(t, "table after a dry run", db.Migrator().HasTable(&UserSession{}), false)
		want(t, "owner's table after a dry run", db.Migrator().HasTable(&User{}), false)
		must(t, sessions.With(db.Session(&gorm.Session{DryRun: true})).Drop(t.Context()))
		must(t, sessions.Migrate(t.Context()))
		want(t, "table after Migrate", db.Migrator().HasTable(&UserSession{}), true)
		must(t, sessions.With(db.Session(&gorm.Session{DryRun: true})).Migrate(t.Context()))
	})

	t.Run("Qualified", func(t *testing.T) {
		dialect, c, log := s.Dialect(t), newClock(), &recorder{}
		if dialect.Name() != "postgres" {
			t.Skip("a table in a schema of its own is PostgreSQL's")
		}
		name := unique()
		open := func() *gorm.DB {
			return s.Open(t, dialect, &gorm.Config{NowFunc: c.Now, Logger: log, NamingStrategy: schema.NamingStrategy{TablePrefix: name + ".", IdentifierMaxLength: 63}})
		}
		db := open()
		sessions := gormsessions.New[UserSession](gormsessions.Config{})
		must(t, db.Use(sessions))
		t.Cleanup(func() { _ = db.Exec("DROP SCHEMA IF EXISTS " + name + " CASCADE").Error })
		want(t, "table", tableOf(t, db, &UserSession{}), name+".user_sessions")
		u := User{Name: "ada"}
		must(t, db.Create(&u).Error)
		v := UserSession{Device: "x"}
		v.Owner = &u
		must(t, db.Create(&v).Error)
		got, err := sessions.Authenticate(t.Context(), string(v.Token), gormsessions.WithOwner, gormsessions.ForUser(&u))
		must(t, err)
		want(t, "owner", got.Owner.ID, u.ID)
		must(t, db.Scopes(gormsessions.Active, gormsessions.ForUser(&u)).Find(&[]UserSession{}).Error)
		must(t, db.Model(&v).Update("device", "y").Error)
		n, err := sessions.Revoke(t.Context(), "x", gormsessions.ForUser(&u), gormsessions.Active)
		must(t, err)
		want(t, "revoked", n, 1)
		statements := log.since(func() { must(t, sessions.Migrate(t.Context())) })
		for _, sql := range statements {
			if isDDL(sql) {
				t.Errorf("migrating twice runs %s", sql)
			}
		}
		must(t, open().Use(gormsessions.New[UserSession](gormsessions.Config{})))
		must(t, db.Unscoped().Delete(&u).Error)
		left, err := sessions.Count(t.Context())
		must(t, err)
		want(t, "sessions of a deleted owner", left, 0)
		must(t, sessions.Drop(t.Context()))
		want(t, "dropped", db.Migrator().HasTable(&UserSession{}), false)
	})

	t.Run("OwnerWithTwoSides", func(t *testing.T) {
		db, _, _, log := s.open(t)
		sessions := gormsessions.New[SideSession](gormsessions.Config{})
		must(t, db.Use(sessions))
		statements := log.since(func() { must(t, sessions.Migrate(t.Context())) })
		if slices.ContainsFunc(statements, isDDL) {
			t.Errorf("migrating twice runs %v", statements)
		}
		u := SideUser{Sessions: []SideSession{{}, {}}}
		must(t, db.Create(&u).Error)
		must(t, db.Exec("DELETE FROM side_users").Error)
		n, err := sessions.Count(t.Context())
		must(t, err)
		want(t, "sessions of a deleted owner", n, 0)
	})

	t.Run("TableThatRefersToSessions", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		must(t, db.Use(gormsessions.New[Logged](gormsessions.Config{})))
		must(t, db.AutoMigrate(&LogLine{}))
		u := User{Name: "ada"}
		must(t, db.Create(&u).Error)
		v := Logged{Lines: []LogLine{{Text: "hello"}}}
		v.OwnerID = u.ID
		must(t, db.Create(&v).Error)
		var line LogLine
		must(t, db.First(&line).Error)
		want(t, "line's session", line.LoggedID, v.ID)
	})

	t.Run("WhatRefersToSessionsSurvives", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		must(t, db.AutoMigrate(&LinkedUser{}, &Linked{}, &Link{})) // a key without the cascade
		sessions := gormsessions.New[Linked](gormsessions.Config{SkipMigrate: true})
		must(t, db.Use(sessions))
		u := LinkedUser{Sessions: []Linked{{}}}
		must(t, db.Create(&u).Error)
		must(t, db.Create(&[]Link{{LinkedID: u.Sessions[0].ID.String()}, {LinkedID: u.Sessions[0].ID.String()}}).Error)
		if db.Name() == "sqlite" {
			err := db.Transaction(func(tx *gorm.DB) error { return sessions.With(tx).Migrate(t.Context()) })
			wantText(t, "inside a transaction", err, "gormsessions: migrate", "outside")
		}
		must(t, sessions.Migrate(t.Context()))
		var n int64
		must(t, db.Model(&Link{}).Count(&n).Error)
		want(t, "rows that refer to a session", n, 2)
		must(t, db.Exec("DELETE FROM "+tableOf(t, db, &u)).Error)
		must(t, db.Model(&Link{}).Count(&n).Error)
		want(t, "rows that refer to a deleted session", n, 0)
		must(t, db.Connection(func(tx *gorm.DB) error { return sessions.With(tx).Migrate(t.Context()) }))
	})

	t.Run("NamesakeOfTheForeignKey", func(t *testing.T) {
		db, dialect, c, log := s.open(t)
		if db.Name() != "postgres" {
			t.Skip("constraints of two tables have one name only on PostgreSQL")
		}
		must(t, db.AutoMigrate(&User{}, &UserSession{}))
		must(t, db.Exec("ALTER TABLE user_sessions RENAME TO old_sessions").Error)
		must(t, db.Exec("DROP INDEX idx_user_sessions_token_digest, idx_user_sessions_expires_at, idx_user_sessions_revoked_at, idx_user_sessions_owner_id, idx_user_sessions_device").Error)
		must(t, db.Use(gormsessions.New[UserSession](gormsessions.Config{})))
		statements := log.since(func() {
			must(t, s.again(t, dialect, c, log).Use(gormsessions.New[UserSession](gormsessions.Config{})))
		})
		if i := slices.IndexFunc(statements, isDDL); i >= 0 {
			t.Errorf("the second start runs %s", statements[i])
		}
	})

	t.Run("RefersToAMissingTable", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		p := gormsessions.New[HasClient](gormsessions.Config{})
		wantText(t, "missing", db.Use(p), "gormsessions: ", "HasClient", "no table clients")
		must(t, db.AutoMigrate(&Client{}))
		must(t, db.Use(p))
		u, client := User{Name: "ada"}, Client{}
		must(t, db.Create(&u).Error)
		must(t, db.Create(&client).Error)
		v := HasClient{Client: &client}
		v.Owner = &u
		must(t, db.Create(&v).Error)
		got, err := p.Get(t.Context(), gormsessions.WithOwner, func(db *gorm.DB) *gorm.DB { return db.Preload("Client") })
		must(t, err)
		want(t, "client", got.Client.ID, client.ID)
	})

	t.Run("ContextEndsWhileWaiting", func(t *testing.T) {
		db, dialect, c, log := s.open(t)
		if db.Name() != "sqlite" || s.Conns == 1 {
			t.Skip("holds the lock of a file")
		}
		must(t, db.Exec("CREATE TABLE x (id integer)").Error)
		tx := db.Begin()
		must(t, tx.Exec("INSERT INTO x VALUES (1)").Error)
		sessions := gormsessions.New[UserSession](gormsessions.Config{SkipMigrate: true})
		other := s.again(t, dialect, c, log)
		must(t, other.Use(sessions))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		wantErr(t, "Migrate", sessions.Migrate(ctx), context.DeadlineExceeded)
		must(t, tx.Rollback().Error)
		must(t, sessions.Migrate(t.Context()))
	})

	t.Run("WrongShapes", func(t *testing.T) {
		db, _, _, log := s.open(t)
		statements := log.since(func() {
			refusedShape[OwnID](s, t, db, "OwnID", "ID hides the column id")
			refusedShape[WithModel](s, t, db, "WithModel", "hides the column id")
			refusedShape[ByPointer](s, t, db, "ByPointer", "by value")
			refusedShape[HidesExpiry](s, t, db, "HidesExpiry", "ExpiresAt hides the column expires_at")
			refusedShape[HidesColumn](s, t, db, "HidesColumn", "Other hides the column revoked_at")
			refusedShape[HidesOwner](s, t, db, "HidesOwner", "OwnerID")
			refusedShape[SecondKey](s, t, db, "SecondKey", "primary key")
			refusedShape[WrongKey](s, t, db, "WrongKey", "int64", "uint", "Session[User, uint]")
			refusedShape[WrongKeyText](s, t, db, "WrongKeyText", "Session[User, uint]")
			refusedShape[PairKey](s, t, db, "PairKey", "one column")
			refusedShape[NoStruct](s, t, db, "NoStruct", "string", "one column")
			refusedShape[PointerOwner](s, t, db, "PointerOwner")
			refusedShape[PointerKey](s, t, db, "PointerKey", "uint")
			refusedShape[Both](s, t, db, "Both", "two sessions")
			refusedShape[Ignored](s, t, db, "Ignored")
		})
		if slices.ContainsFunc(statements, isDDL) {
			t.Errorf("a wrong shape was migrated: %v", statements)
		}
		if create := db.Callback().Create().Get(gormsessions.New[OwnID](gormsessions.Config{}).Name() + ":before_create"); create != nil {
			t.Error("a callback stayed registered")
		}
		must(t, db.Use(gormsessions.New[UserSession](gormsessions.Config{})))
		refusedShape[SameTable](s, t, db, "SameTable", "UserSession", "user_sessions")
	})

	t.Run("RegisteredTwice", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		wantErr(t, "the same plugin", e.db.Use(e.sessions), gorm.ErrRegistered)
		wantErr(t, "another for the same model", e.db.Use(gormsessions.New[UserSession](gormsessions.Config{})), gorm.ErrRegistered)
		wantText(t, "on another database", s.again(t, e.dialect, e.clock, e.log).Use(e.sessions), "gormsessions: ", "UserSession", "registered already")
		e.authenticate(e.sign())
		names := map[string]bool{}
		for _, p := range []gorm.Plugin{gormsessions.New[UserSession](gormsessions.Config{}), gormsessions.New[Key](gormsessions.Config{}), gormsessions.New[Rich](gormsessions.Config{})} {
			names[p.Name()] = true
		}
		want(t, "names", len(names), 3)
	})

	t.Run("FailedMigrationLeavesNothing", func(t *testing.T) {
		dialect, c, log := s.Dialect(t), newClock(), &recorder{}
		db := s.again(t, dialect, c, log)
		table := tableOf(t, db, &UserSession{})
		must(t, db.Exec("CREATE VIEW "+table+" AS SELECT 1 AS id").Error)
		sessions := gormsessions.New[UserSession](gormsessions.Config{})
		if err := db.Use(sessions); err == nil {
			t.Fatal("a view in the table's place: got no error")
		}
		if _, ok := db.Plugins[sessions.Name()]; ok || db.Callback().Create().Get(sessions.Name()+":before_create") != nil {
			t.Error("it stayed registered")
		}
		_, err := sessions.Count(t.Context())
		wantErr(t, "Count", err, gormsessions.ErrNotRegistered)
		must(t, db.Exec("DROP VIEW "+table).Error)
		must(t, db.Use(sessions))
		u := User{Name: "ada"}
		must(t, db.Create(&u).Error)
		v := UserSession{}
		v.OwnerID = u.ID
		must(t, db.Create(&v).Error)
	})
}

// zoned is a time zone whose clocks change.
func zoned(t *testing.T) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Skipf("no time zones on this machine: %v", err)
	}
	return zone
}

func (s suite) times(t *testing.T) {
	t.Run("R29_Zones", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{IdleTimeout: 30 * time.Minute, TouchInterval: time.Minute})
		zones := []*time.Location{time.UTC, zoned(t), time.FixedZone("east", 14*3600), time.FixedZone("west", -12*3600)}
		// Around both changes of New York's clocks in 2026.
		for _, start := range []time.Time{time.Date(2026, 3, 8, 6, 20, 0, 0, time.UTC), time.Date(2026, 11, 1, 5, 20, 0, 0, time.UTC)} {
			e.clock.Set(start.In(zones[1]))
			sliding := e.sign()
			expiry := start.Add(90 * time.Minute)
			fixed := e.sign(func(u *UserSession) { u.ExpiresAt = ptr(expiry.In(zones[2])) })
			for i := range 12 {
				now := start.Add(time.Duration(i*10) * time.Minute)
				e.clock.Set(now.In(zones[i%len(zones)]))
				e.authenticate(sliding)
				_, err := e.sessions.Authenticate(e.ctx, string(fixed.Token))
				want(t, fmt.Sprint("fixed at ", now), err == nil, now.Before(expiry))
				want(t, fmt.Sprint("Active at ", now), e.count(gormsessions.Active, gormsessions.WithID(fixed.ID)) == 1, now.Before(expiry))
			}
			row := e.row(fixed.ID)
			wantTime(t, "ExpiresAt", row.ExpiresAt, expiry)
			wantTime(t, "CreatedAt", &row.CreatedAt, start)
			e.clock.Advance(31 * time.Minute)
			e.refused(sliding.Token)
		}
	})

	t.Run("R29_Microseconds", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		e.clock.Set(time.Date(2026, 1, 2, 3, 4, 5, 987654321, time.FixedZone("x", 3600)))
		v := e.sign(func(u *UserSession) { u.ExpiresAt = ptr(time.Date(2026, 6, 1, 0, 0, 0, 999999999, time.UTC)) })
		for _, got := range []*UserSession{v, e.row(v.ID)} {
			wantTime(t, "CreatedAt", &got.CreatedAt, time.Date(2026, 1, 2, 2, 4, 5, 987654000, time.UTC))
			wantTime(t, "ExpiresAt", got.ExpiresAt, time.Date(2026, 6, 1, 0, 0, 0, 999999000, time.UTC))
		}
		n, err := e.sessions.Count(e.ctx, func(db *gorm.DB) *gorm.DB { return db.Where("expires_at = ?", v.ExpiresAt) })
		must(t, err)
		want(t, "found by its time", n, 1)
	})
}

func (s suite) config(t *testing.T) {
	db, _, _, _ := s.open(t)
	for name, config := range badConfigs() {
		p := gormsessions.New[UserSession](config)
		wantText(t, name, db.Use(p), "gormsessions: Config."+name[:strings.IndexAny(name+" ", " ")])
		if _, ok := db.Plugins[p.Name()]; ok || db.Migrator().HasTable(&UserSession{}) {
			t.Errorf("%s: it stayed registered, or migrated", name)
		}
	}
	must(t, db.Use(gormsessions.New[UserSession](gormsessions.Config{})))
}

// LongNamed has a table whose name leaves no room for another's.
type LongNamed struct{ gormsessions.Base }

func (LongNamed) TableName() string { return strings.Repeat("l", 49) }
