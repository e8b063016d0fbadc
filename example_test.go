package gormsessions_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/datatypes"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// User and UserSession are the models of most examples.
type User struct {
	ID    uint
	Email string `gorm:"not null;size:255;uniqueIndex"`
}

type UserSession struct {
	gormsessions.Session[User, uint]
	Device string `gorm:"not null;size:255;index"`
}

func Example() {
	ctx := context.Background()
	db := openMemory() // as gorm.Open returns it

	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	panicIf(db.Use(sessions)) // migrates the table user_sessions

	user := User{Email: "ada@example.com"}
	panicIf(db.Create(&user).Error)

	// Sign in.
	s := UserSession{Device: "Firefox on Linux"}
	s.Owner = &user
	panicIf(db.Create(&s).Error)
	token := string(s.Token) // for the client: there is no other copy
	fmt.Println(s.Token)

	// On each request.
	current, err := sessions.Authenticate(ctx, token, gormsessions.WithOwner)
	panicIf(err)
	fmt.Println(current.Owner.Email, "with", current.Device)

	// Sign out.
	_, err = sessions.Revoke(ctx, "signed out", gormsessions.WithID(current.ID))
	panicIf(err)
	_, err = sessions.Authenticate(ctx, token)
	fmt.Println(errors.Is(err, gormsessions.ErrNoSession))
	// Output:
	// [redacted]
	// ada@example.com with Firefox on Linux
	// true
}

// API keys: another model, with an owner whose key is a UUID, another Config.
func ExampleNew() {
	type Project struct {
		ID   uuid.UUID `gorm:"primaryKey"`
		Name string
	}
	type APIKey struct {
		gormsessions.Session[Project, uuid.UUID]
		Name string `gorm:"not null"`
	}

	db := openMemory()
	keys := gormsessions.New[APIKey](gormsessions.Config{
		IdleTimeout: gormsessions.Never, // good until it is revoked
		Prefix:      "acme",             // secret scanners can tell it
	})
	panicIf(db.Use(keys))

	project := Project{ID: uuid.New(), Name: "Analytical Engine"}
	panicIf(db.Create(&project).Error)
	key := APIKey{Name: "deploy"}
	key.OwnerID = project.ID
	panicIf(db.Create(&key).Error)

	prefix, _, _ := strings.Cut(string(key.Token), "_")
	fmt.Println("prefix:", prefix)
	fmt.Println("expires:", key.ExpiresAt != nil)
	// Output:
	// prefix: acme
	// expires: false
}

// An API key that may do some things.
func ExampleAbilities() {
	type APIKey struct {
		gormsessions.Session[User, uint]
		gormsessions.Abilities
	}

	ctx := context.Background()
	db := openMemory()
	keys := gormsessions.New[APIKey](gormsessions.Config{IdleTimeout: gormsessions.Never, Prefix: "acme"})
	panicIf(db.Use(keys))
	key := APIKey{Abilities: gormsessions.Abilities{"posts:*", "users:read"}}
	key.Owner = signUp(db, "ada@example.com")
	panicIf(keys.Create(ctx, &key))

	got, err := keys.Authenticate(ctx, string(key.Token))
	panicIf(err)
	fmt.Println(got.Can("posts:write"), got.Can("users:read"), got.Can("users:write"))

	n, err := keys.Count(ctx, gormsessions.Active, gormsessions.WithAbility("posts:write"))
	panicIf(err)
	fmt.Println(n)
	// Output:
	// true true false
	// 1
}

// The peppered digest comes first, so all new sessions get it. Those of before
// stay valid, because their hash is still among the Hashers, and get it too when
// they are next used.
func ExampleHMAC() {
	ctx := context.Background()
	db := openMemory()
	before := gormsessions.New[UserSession](gormsessions.Config{}) // SHA-256
	panicIf(db.Use(before))
	old := signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux")

	// The next release of the application, on the same database.
	pepper := make([]byte, 32) // from a secret store, the same on every node
	rand.Read(pepper)
	db = openAgain(db)
	sessions := gormsessions.New[UserSession](gormsessions.Config{
		Hashers: []gormsessions.Hasher{
			gormsessions.HMAC(crypto.SHA256, pepper),
			gormsessions.Hash(crypto.SHA256),
		},
	})
	panicIf(db.Use(sessions))

	got, err := sessions.Authenticate(ctx, string(old.Token), gormsessions.WithOwner)
	panicIf(err)
	fmt.Println("still signed in:", got.Device)

	// Every node needs the pepper: without it, no new session is found.
	fresh := signIn(db, got.Owner, "Safari on iPhone")
	_, err = before.Authenticate(ctx, string(fresh.Token))
	fmt.Println("without the pepper:", err)
	// Output:
	// still signed in: Firefox on Linux
	// without the pepper: gormsessions: no such session
}

// The devices of a user, the newest first.
func ExamplePlugin_List() {
	ctx := context.Background()
	db, sessions := openSessions()
	ada, bob := signUp(db, "ada@example.com"), signUp(db, "bob@example.com")
	signIn(db, ada, "Firefox on Linux")
	signIn(db, ada, "Safari on iPhone")
	signIn(db, bob, "Chrome on Windows")

	devices, err := sessions.List(ctx, gormsessions.Active, gormsessions.ForUser(ada))
	panicIf(err)
	for _, s := range devices {
		fmt.Println(s.Device)
	}
	// Output:
	// Safari on iPhone
	// Firefox on Linux
}

// Sign out everywhere else: all sessions of the user, except this one.
func ExamplePlugin_Revoke() {
	ctx := context.Background()
	db, sessions := openSessions()
	ada := signUp(db, "ada@example.com")
	signIn(db, ada, "Safari on iPhone")
	signIn(db, ada, "Chrome on Windows")
	current := signIn(db, ada, "Firefox on Linux")

	n, err := sessions.Revoke(ctx, "signed out elsewhere",
		gormsessions.ForUser(ada), gormsessions.Except(current))
	panicIf(err)
	fmt.Println("ended:", n)

	left, err := sessions.List(ctx, gormsessions.Active, gormsessions.ForUser(ada))
	panicIf(err)
	for _, s := range left {
		fmt.Println("left:", s.Device)
	}
	// Output:
	// ended: 2
	// left: Firefox on Linux
}

// A session that has expired can be made valid again; one that was revoked
// cannot.
func ExamplePlugin_SetExpiry() {
	ctx := context.Background()
	db, sessions := openSessions()
	s := signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux")

	yesterday := time.Now().AddDate(0, 0, -1)
	panicIf(sessions.SetExpiry(ctx, s, &yesterday))
	fmt.Println("expired:", s.IsExpired())

	tomorrow := time.Now().AddDate(0, 0, 1)
	panicIf(sessions.SetExpiry(ctx, s, &tomorrow))
	fmt.Println("expired:", s.IsExpired())

	_, err := sessions.Revoke(ctx, "signed out", gormsessions.WithID(s.ID))
	panicIf(err)
	fmt.Println(sessions.SetExpiry(ctx, s, &tomorrow))
	// Output:
	// expired: true
	// expired: false
	// gormsessions: no such session
}

// The user and the first session are stored together or not at all.
func ExamplePlugin_With() {
	ctx := context.Background()
	db, sessions := openSessions()

	s := UserSession{Device: "Firefox on Linux"}
	err := db.Transaction(func(tx *gorm.DB) error {
		user := User{Email: "ada@example.com"}
		if err := tx.Create(&user).Error; err != nil {
			return err
		}
		s.Owner = &user
		return sessions.With(tx).Create(ctx, &s)
	})
	panicIf(err)

	// Only now is the token good, and may go to the client.
	got, err := sessions.Authenticate(ctx, string(s.Token), gormsessions.WithOwner)
	panicIf(err)
	fmt.Println(got.Owner.Email)
	// Output: ada@example.com
}

// With SkipMigrate the table is the application's own affair: a dry run prints
// the statements, for a migration file to start from, and runs none.
func ExamplePlugin_Migrate() {
	ctx := context.Background()
	db := openMemory()
	panicIf(db.AutoMigrate(&User{}))
	sessions := gormsessions.New[UserSession](gormsessions.Config{SkipMigrate: true})
	panicIf(db.Use(sessions))

	panicIf(sessions.With(db.Session(&gorm.Session{DryRun: true})).Migrate(ctx))
	fmt.Println("exists:", db.Migrator().HasTable(&UserSession{}))

	panicIf(sessions.Migrate(ctx))
	fmt.Println("exists:", db.Migrator().HasTable(&UserSession{}))
	// Output:
	// CREATE TABLE `user_sessions` (`id` text NOT NULL,`token_digest` blob NOT NULL,`data` JSON NOT NULL,`expires_at` datetime,`idle_timeout` integer NOT NULL,`deadline` datetime,`last_used_at` datetime,`authenticated_at` datetime NOT NULL,`revoked_at` datetime,`revoked_reason` text NOT NULL,`created_at` datetime NOT NULL,`updated_at` datetime NOT NULL,`owner_id` integer NOT NULL,`device` text NOT NULL,PRIMARY KEY (`id`),CONSTRAINT `fk_user_sessions_owner` FOREIGN KEY (`owner_id`) REFERENCES `users`(`id`) ON DELETE CASCADE ON UPDATE CASCADE);
	// CREATE INDEX `idx_user_sessions_device` ON `user_sessions`(`device`);
	// CREATE INDEX `idx_user_sessions_owner_id` ON `user_sessions`(`owner_id`);
	// CREATE INDEX `idx_user_sessions_revoked_at` ON `user_sessions`(`revoked_at`) WHERE `revoked_at` IS NOT NULL;
	// CREATE INDEX `idx_user_sessions_expires_at` ON `user_sessions`(`expires_at`);
	// CREATE UNIQUE INDEX `idx_user_sessions_token_digest` ON `user_sessions`(`token_digest`);
	// CREATE TABLE IF NOT EXISTS `user_sessions_retired_tokens` (token_digest blob NOT NULL UNIQUE, session_id text NOT NULL, authenticated_at datetime NOT NULL, retired_at datetime NOT NULL, PRIMARY KEY (session_id, token_digest), FOREIGN KEY (session_id) REFERENCES `user_sessions` (`id`) ON UPDATE CASCADE ON DELETE CASCADE);
	// exists: false
	// exists: true
}

// The scopes are plain GORM scopes.
func ExampleActive() {
	db, _ := openSessions()
	ada := signUp(db, "ada@example.com")
	signIn(db, ada, "Firefox on Linux")
	signIn(db, ada, "Safari on iPhone")

	var online int64
	panicIf(db.Model(&UserSession{}).Scopes(gormsessions.Active).Count(&online).Error)
	fmt.Println(online)
	// Output: 2
}

// The generics API of GORM takes the scopes through Stmt.
func ExampleStmt() {
	ctx := context.Background()
	db, _ := openSessions()
	ada, bob := signUp(db, "ada@example.com"), signUp(db, "bob@example.com")
	signIn(db, ada, "Firefox on Linux")
	signIn(db, bob, "Chrome on Windows")

	list, err := gorm.G[UserSession](db).
		Scopes(gormsessions.Stmt(gormsessions.Active, gormsessions.ForUser(ada))).
		Find(ctx)
	panicIf(err)
	for _, s := range list {
		fmt.Println(s.Device)
	}
	// Output: Firefox on Linux
}

// The names may come from a request: they are checked against the model.
func ExampleWhere() {
	ctx := context.Background()
	db, sessions := openSessions()
	ada := signUp(db, "ada@example.com")
	signIn(db, ada, "Firefox on Linux")
	signIn(db, ada, "Safari on iPhone")

	// As from ?device=Safari+on+iPhone
	filter := gormsessions.Fields{"device": "Safari on iPhone"}
	list, err := sessions.List(ctx, gormsessions.ForUser(ada), gormsessions.Where(filter))
	panicIf(err)
	for _, s := range list {
		fmt.Println(s.Device)
	}

	// As from ?1=1;--=
	filter = gormsessions.Fields{"1=1;--": ""}
	_, err = sessions.List(ctx, gormsessions.ForUser(ada), gormsessions.Where(filter))
	fmt.Println(errors.Is(err, gormsessions.ErrUnknownField))
	// Output:
	// Safari on iPhone
	// true
}

// One table for owners of several kinds: Base with the two columns of GORM's
// polymorphic associations.
func ExampleForOwner() {
	type Login struct {
		gormsessions.Base
		OwnerType string `gorm:"not null;size:64;index:idx_logins_owner"`
		OwnerID   uint   `gorm:"not null;index:idx_logins_owner"`
		Device    string
	}
	type User struct {
		ID       uint
		Email    string
		Sessions []Login `gorm:"polymorphic:Owner"`
	}
	type Robot struct {
		ID       uint
		Model    string
		Sessions []Login `gorm:"polymorphic:Owner"`
	}

	ctx := context.Background()
	db := openMemory()
	logins := gormsessions.New[Login](gormsessions.Config{})
	panicIf(db.Use(logins))
	panicIf(db.AutoMigrate(&User{}, &Robot{}))

	// Both have the key 1.
	ada := User{Email: "ada@example.com", Sessions: []Login{{Device: "Firefox on Linux"}}}
	panicIf(db.Create(&ada).Error)
	r2 := Robot{Model: "R2", Sessions: []Login{{Device: "arm"}, {Device: "wheels"}}}
	panicIf(db.Create(&r2).Error)

	for _, owner := range []any{&ada, &r2} {
		list, err := logins.List(ctx, gormsessions.ForOwner(owner))
		panicIf(err)
		for _, s := range list {
			fmt.Println(s.OwnerType, s.OwnerID, s.Device)
		}
	}

	got, err := logins.Authenticate(ctx, string(ada.Sessions[0].Token))
	panicIf(err)
	fmt.Println("authenticated:", got.OwnerType, got.OwnerID)
	// Output:
	// users 1 Firefox on Linux
	// robots 1 wheels
	// robots 1 arm
	// authenticated: users 1
}

// Data holds what needs no column of its own. It can be asked for all the same.
func Example_jsonQuery() {
	db, _ := openSessions()
	ada := signUp(db, "ada@example.com")
	for _, s := range []UserSession{
		{Device: "Firefox on Linux"},
		{Device: "Safari on iPhone"},
	} {
		s.OwnerID = ada.ID
		s.Data = datatypes.JSONMap{"theme": "dark", "mobile": s.Device == "Safari on iPhone"}
		panicIf(db.Create(&s).Error)
	}

	var list []UserSession
	panicIf(db.Scopes(gormsessions.Active).
		Where(datatypes.JSONQuery("data").Equals("dark", "theme")).
		Where(datatypes.JSONQuery("data").Equals(true, "mobile")).
		Find(&list).Error)
	for _, s := range list {
		fmt.Println(s.Device, s.Data["theme"])
	}
	// Output: Safari on iPhone dark
}

// openMemory opens a database that lives in memory, on one connection: each
// connection would have its own. GORM's default logger writes to the output
// that the examples are checked by.
func openMemory() *gorm.DB {
	db, err := gorm.Open(sqlite.Open("file::memory:?_foreign_keys=on"), &gorm.Config{Logger: logger.Discard})
	panicIf(err)
	pool, err := db.DB()
	panicIf(err)
	pool.SetMaxOpenConns(1)
	return db
}

// openAgain is the database of db as another program opens it.
func openAgain(db *gorm.DB) *gorm.DB {
	pool, err := db.DB()
	panicIf(err)
	again, err := gorm.Open(sqlite.New(sqlite.Config{Conn: pool}), &gorm.Config{Logger: logger.Discard})
	panicIf(err)
	return again
}

func openSessions() (*gorm.DB, *gormsessions.Plugin[UserSession]) {
	db := openMemory()
	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	panicIf(db.Use(sessions))
	return db, sessions
}

func signUp(db *gorm.DB, email string) *User {
	user := &User{Email: email}
	panicIf(db.Create(user).Error)
	return user
}

func signIn(db *gorm.DB, user *User, device string) *UserSession {
	s := &UserSession{Device: device}
	s.Owner = user
	panicIf(db.Create(s).Error)
	return s
}

func panicIf(err error) {
	if err != nil {
		panic(err)
	}
}
