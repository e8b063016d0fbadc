// Command quickstart shows what an application does with gormsessions: a user
// signs in on several devices, sees them, signs out of the others, and tokens
// that are no longer good are refused.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -dsn app.db
//	go run ./examples/quickstart -dsn postgres://user:password@localhost/app
//
// In a database of yours it makes two users and their sessions, in tables that begin
// with quickstart_, and leaves them there.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gormsessions/gormsessions"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/schema"
)

// User is a model of the application. It needs nothing to have sessions.
type User struct {
	ID    uint
	Email string `gorm:"not null;size:255;uniqueIndex"`
}

// UserSession is one signed-in device of a User. Device is an extra field: a
// column like any other.
type UserSession struct {
	gormsessions.Session[User, uint]
	Device string `gorm:"not null;size:255"`
}

func main() {
	dsn := flag.String("dsn", "", "SQLite `database` (app.db, file:…) or postgres://… (default: a temporary file)")
	flag.Parse()
	if err := run(context.Background(), *dsn); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dsn string) (err error) {
	if dsn == "" {
		var dir string
		if dir, err = os.MkdirTemp("", "quickstart"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		dsn = filepath.Join(dir, "app.db")
	}
	db, err := open(dsn)
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()

	if err := db.AutoMigrate(&User{}); err != nil {
		return err
	}
	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	if err := db.Use(sessions); err != nil { // makes the table of the sessions
		return err
	}
	return tour(ctx, db, sessions)
}

func tour(ctx context.Context, db *gorm.DB, sessions *gormsessions.Plugin[UserSession]) error {
	ada, err := signUp(db, "ada@example.com")
	if err != nil {
		return err
	}
	bob, err := signUp(db, "bob@example.com")
	if err != nil {
		return err
	}

	section(1, "Sign in: the one moment when there is a token")
	laptop, err := signIn(db, ada, "Firefox on Linux")
	if err != nil {
		return err
	}
	token := string(laptop.Token) // what goes into the cookie
	fmt.Println("   string(s.Token)       ", token)
	fmt.Println("   fmt.Println(s.Token)  ", laptop.Token)

	section(2, "What the database keeps of it: a digest")
	stored, err := sessions.Get(ctx, gormsessions.WithID(laptop.ID))
	if err != nil {
		return err
	}
	fmt.Println("   SHA-256", hex.EncodeToString(stored.TokenDigest))

	section(3, "Who is this? The session and its owner, in one query")
	current, err := sessions.Authenticate(ctx, token, gormsessions.WithOwner)
	if err != nil {
		return err
	}
	fmt.Printf("   %s with %s, until %s\n", current.Owner.Email, current.Device, moment(current.ExpiresAt))

	section(4, "Ada's devices (times in UTC)")
	var others []*UserSession
	for _, device := range []string{"Safari on iPhone", "Firefox on Android", "Chrome on Windows", "Opera on Windows"} {
		s, err := signIn(db, ada, device)
		if err != nil {
			return err
		}
		others = append(others, s)
	}
	if _, err := signIn(db, bob, "Safari on macOS"); err != nil {
		return err
	}
	expired, revoked, deleted := others[1], others[2], others[3]
	lastMinute := time.Now().Add(-time.Minute)
	if err := sessions.SetExpiry(ctx, expired, &lastMinute); err != nil {
		return err
	}
	if _, err := sessions.Revoke(ctx, "device lost", gormsessions.WithID(revoked.ID)); err != nil {
		return err
	}
	if err := db.Delete(deleted).Error; err != nil {
		return err
	}
	if err := printDevices(ctx, sessions, gormsessions.ForUser(ada)); err != nil {
		return err
	}

	section(5, "Sign out everywhere else: what is left, of everybody")
	if _, err := sessions.Revoke(ctx, "signed out elsewhere", gormsessions.ForUser(ada), gormsessions.Except(current)); err != nil {
		return err
	}
	if err := printDevices(ctx, sessions, gormsessions.Active); err != nil {
		return err
	}

	section(6, "A token that is not good: always the same error")
	for _, bad := range []struct{ what, token string }{
		{"expired", string(expired.Token)},
		{"revoked", string(revoked.Token)},
		{"mistyped", "-" + token[1:]}, // its checksum is wrong: this costs no query
		{"unknown", string(deleted.Token)},
	} {
		_, err := sessions.Authenticate(ctx, bad.token)
		if !errors.Is(err, gormsessions.ErrNoSession) { // nil, or the database failed
			return fmt.Errorf("%s token: got %v, want ErrNoSession", bad.what, err)
		}
		fmt.Printf("   %-10s%v (is gorm.ErrRecordNotFound: %t)\n", bad.what, err, errors.Is(err, gorm.ErrRecordNotFound))
	}
	return nil
}

// signUp finds or makes a user, without the sessions of an earlier run.
func signUp(db *gorm.DB, email string) (*User, error) {
	var user User
	if err := db.Where(User{Email: email}).FirstOrCreate(&user).Error; err != nil {
		return nil, err
	}
	return &user, db.Scopes(gormsessions.ForUser(&user)).Delete(&UserSession{}).Error
}

func signIn(db *gorm.DB, user *User, device string) (*UserSession, error) {
	s := UserSession{Device: device}
	s.Owner = user
	return &s, db.Create(&s).Error
}

func printDevices(ctx context.Context, sessions *gormsessions.Plugin[UserSession], scopes ...gormsessions.Scope) error {
	list, err := sessions.List(ctx, append(scopes, gormsessions.WithOwner)...)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "   OWNER\tDEVICE\tSIGNED IN\tLAST USED\tEXPIRES\tSTATE")
	for _, s := range list {
		name, _, _ := strings.Cut(s.Owner.Email, "@")
		fmt.Fprintf(w, "   %s\t%s\t%s\t%s\t%s\t%s\n", name, s.Device, moment(&s.CreatedAt), moment(s.LastUsedAt), moment(s.ExpiresAt), state(&s))
	}
	return w.Flush()
}

func state(s *UserSession) string {
	switch {
	case s.IsRevoked():
		return "revoked"
	case s.IsExpired():
		return "expired"
	}
	return "active"
}

func moment(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.Format("Jan _2 15:04")
}

func section(n int, title string) { fmt.Printf("\n%d. %s\n\n", n, title) }

func open(dsn string) (*gorm.DB, error) {
	// The prefix keeps the tour off the users of a database of yours.
	config := &gorm.Config{NamingStrategy: schema.NamingStrategy{TablePrefix: "quickstart_"}}
	switch {
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		return gorm.Open(postgres.Open(dsn), config)
	case strings.HasSuffix(dsn, ".db"), strings.HasPrefix(dsn, "file:"):
		if !strings.Contains(dsn, "?") {
			// Immediate: a transaction that reads first and writes later would
			// fail where another wrote in between; this one waits its turn.
			dsn += "?_foreign_keys=on&_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"
		}
		return gorm.Open(sqlite.Open(dsn), config)
	}
	return nil, fmt.Errorf("-dsn is %q: want a SQLite file (app.db, file:…) or postgres://…", dsn)
}
