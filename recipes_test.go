package gormsessions_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

// Without "remember me" a session is over after half an hour without use, or
// with the working day. With it, this one device stays signed in for a month
// without use, and for a year at most. Both stand in the same table: what a
// session has of its own wins over the Config.
func Example_rememberMe() {
	ctx := context.Background()
	now := time.Date(2026, time.March, 2, 9, 0, 0, 0, time.UTC)
	db := openAt(&now)
	sessions := gormsessions.New[UserSession](gormsessions.Config{
		IdleTimeout:     30 * time.Minute,
		AbsoluteTimeout: 12 * time.Hour,
		TouchInterval:   time.Minute,
	})
	panicIf(db.Use(sessions))
	ada := signUp(db, "ada@example.com")

	signIn := func(device string, remember bool) string {
		s := UserSession{Device: device}
		s.Owner = ada
		if remember {
			deadline := now.AddDate(1, 0, 0)
			s.IdleTimeout, s.Deadline = 30*24*time.Hour, &deadline
		}
		panicIf(sessions.Create(ctx, &s))
		fmt.Println(device, "until", s.ExpiresAt.Format(time.DateTime))
		return string(s.Token)
	}
	office := signIn("Firefox on Linux", false)
	phone := signIn("Safari on iPhone", true)

	now = now.AddDate(0, 0, 20)
	_, err := sessions.Authenticate(ctx, office)
	fmt.Println("Firefox on Linux:", err)
	s, err := sessions.Authenticate(ctx, phone)
	panicIf(err)
	fmt.Println("Safari on iPhone until", s.ExpiresAt.Format(time.DateTime))
	// Output:
	// Firefox on Linux until 2026-03-02 09:30:00
	// Safari on iPhone until 2026-04-01 09:00:00
	// Firefox on Linux: gormsessions: no such session
	// Safari on iPhone until 2026-04-21 09:00:00
}

// Keys that are good until they are revoked, may do some things, and show their
// owner which of them nobody uses any more.
func Example_apiKeys() {
	type APIKey struct {
		gormsessions.Session[User, uint]
		gormsessions.Abilities
		Name string `gorm:"not null;size:255"`
	}

	ctx := context.Background()
	now := time.Date(2026, time.March, 2, 9, 0, 0, 0, time.UTC)
	db := openAt(&now)
	keys := gormsessions.New[APIKey](gormsessions.Config{
		IdleTimeout:   gormsessions.Never,
		TouchInterval: time.Minute, // LastUsedAt is right to the minute
		Prefix:        "acme",      // secret scanners can tell it
	})
	panicIf(db.Use(keys))
	ada := signUp(db, "ada@example.com")

	create := func(name string, abilities ...string) string {
		key := APIKey{Name: name, Abilities: abilities}
		key.Owner = ada
		panicIf(keys.Create(ctx, &key))
		return string(key.Token) // shown once
	}
	create("old laptop", "*")
	deploy := create("deploy", "posts:read", "posts:write")

	now = now.AddDate(5, 0, 0)
	key, err := keys.Authenticate(ctx, deploy)
	panicIf(err)
	fmt.Println("may write posts:", key.Can("posts:write"))
	fmt.Println("may delete users:", key.Can("users:delete"))

	list, err := keys.List(ctx, gormsessions.Active, gormsessions.ForUser(ada))
	panicIf(err)
	for _, key := range list {
		used := "never"
		if key.LastUsedAt != nil {
			used = key.LastUsedAt.Format(time.DateOnly)
		}
		fmt.Printf("%s, made %s, last used %s\n", key.Name, key.CreatedAt.Format(time.DateOnly), used)
	}
	// Output:
	// may write posts: true
	// may delete users: false
	// deploy, made 2026-03-02, last used 2031-03-02
	// old laptop, made 2026-03-02, last used never
}

// The page "my devices", and its button "sign out" beside each. The ID comes
// from a request; ForUser beside it makes the ID of somebody else's session end
// nothing.
func Example_devices() {
	ctx := context.Background()
	db, sessions := openSessions()
	ada, bob := signUp(db, "ada@example.com"), signUp(db, "bob@example.com")
	phone := signIn(db, ada, "Safari on iPhone")
	current := signIn(db, ada, "Firefox on Linux")
	others := signIn(db, bob, "Chrome on Windows")

	list := func() {
		devices, err := sessions.List(ctx, gormsessions.Active, gormsessions.ForUser(current.OwnerID))
		panicIf(err)
		for _, s := range devices {
			note := ""
			if s.ID == current.ID {
				note = " (this device)"
			}
			fmt.Println("-", s.Device+note)
		}
	}
	signOut := func(id string) {
		parsed, err := uuid.Parse(id)
		panicIf(err) // a handler answers 404
		n, err := sessions.Revoke(ctx, "revoked by its owner",
			gormsessions.ForUser(current.OwnerID), gormsessions.WithID(parsed))
		panicIf(err)
		fmt.Println("ended:", n) // 0: 404 as well
	}

	list()
	signOut(others.ID.String())
	signOut(phone.ID.String())
	list()
	// Output:
	// - Firefox on Linux (this device)
	// - Safari on iPhone
	// ended: 0
	// ended: 1
	// - Firefox on Linux (this device)
}

// A new password ends all other sessions, and gives this one a new token (the
// one before it still works for Config.RotationGrace); or, when any of that
// fails, nothing has changed.
func Example_passwordChange() {
	type Account struct {
		ID           uint
		PasswordHash string
	}
	type Login struct {
		gormsessions.Session[Account, uint]
	}

	ctx := context.Background()
	db := openMemory()
	logins := gormsessions.New[Login](gormsessions.Config{})
	panicIf(db.Use(logins))

	account := Account{PasswordHash: "hash of the old one"}
	panicIf(db.Create(&account).Error)
	var current, phone Login
	for _, s := range []*Login{&current, &phone} {
		s.OwnerID = account.ID
		panicIf(db.Create(s).Error)
	}

	// After the old password was asked for, and was right:
	err := db.Transaction(func(tx *gorm.DB) error {
		err := tx.Model(&account).Update("PasswordHash", "hash of the new one").Error
		if err != nil {
			return err
		}
		_, err = logins.With(tx).Revoke(ctx, "password changed",
			gormsessions.ForUser(&account), gormsessions.Except(&current))
		if err != nil {
			return err
		}
		return logins.With(tx).Reauthenticate(ctx, &current)
	})
	panicIf(err)
	// Committed: the new token goes into the cookie. (Behind sessionhttp leave
	// Reauthenticate out of the transaction, and call Web.Reauthenticate after it.)
	token := string(current.Token)

	_, err = logins.Authenticate(ctx, token)
	fmt.Println("this device:", err)
	_, err = logins.Authenticate(ctx, string(phone.Token))
	fmt.Println("the phone:", err)
	// Output:
	// this device: <nil>
	// the phone: gormsessions: no such session
}

// Support sees what a user sees, and leaves a trace. The session itself says who
// it is and for which ticket, and no update can take that away. Its start and its
// end are in a table that is never pruned. It is over after 15 minutes, however
// it is used.
func Example_impersonation() {
	type UserSession struct {
		gormsessions.Session[User, uint]
		ImpersonatorID *uint  `gorm:"<-:create;index"` // nil: the user's own
		Ticket         string `gorm:"<-:create;not null;size:64"`
	}
	type Impersonation struct {
		ID             uint
		Event          string    `gorm:"not null;size:16"`
		At             time.Time `gorm:"not null"`
		SessionID      uuid.UUID `gorm:"not null;index"`
		UserID         uint      `gorm:"not null;index"`
		ImpersonatorID uint      `gorm:"not null;index"`
		Ticket         string    `gorm:"not null;size:64"`
	}

	ctx := context.Background()
	now := time.Date(2026, time.March, 2, 9, 0, 0, 0, time.UTC)
	db := openAt(&now)
	sessions := gormsessions.New[UserSession](gormsessions.Config{
		OnEvent: func(_ context.Context, e gormsessions.Event) {
			if e.Kind != gormsessions.EventCreated && e.Kind != gormsessions.EventRevoked {
				return
			}
			var s UserSession
			panicIf(e.DB().Scopes(gormsessions.WithID(e.SessionID)).Take(&s).Error)
			if s.ImpersonatorID != nil {
				panicIf(e.DB().Create(&Impersonation{Event: string(e.Kind), At: e.Time, SessionID: s.ID,
					UserID: s.OwnerID, ImpersonatorID: *s.ImpersonatorID, Ticket: s.Ticket}).Error)
			}
		},
	})
	panicIf(db.Use(sessions))
	panicIf(db.AutoMigrate(&Impersonation{}))
	ada, grace := signUp(db, "ada@example.com"), signUp(db, "grace@support.example.com")

	s := UserSession{ImpersonatorID: &grace.ID, Ticket: "T-1815"}
	s.Owner = ada
	end := now.Add(15 * time.Minute)
	s.ExpiresAt = &end // an expiry alone: no use moves it
	s.Deadline = &end  // and neither Extend nor SetExpiry goes past this
	err := db.Transaction(func(tx *gorm.DB) error {
		if err := sessions.With(tx).Create(ctx, &s); err != nil {
			return err
		}
		// What OnEvent could not write must not start: it has no error to give.
		return tx.Take(&Impersonation{}, "session_id = ?", s.ID).Error
	})
	panicIf(err)

	now = now.Add(14 * time.Minute)
	current, err := sessions.Authenticate(ctx, string(s.Token), gormsessions.WithOwner)
	panicIf(err)
	fmt.Println("acting as", current.Owner.Email, "until", current.ExpiresAt.Format(time.TimeOnly))
	if current.ImpersonatorID != nil { // ask so before what only the user may do
		fmt.Println("changing the password: refused")
	}
	_, err = sessions.Revoke(ctx, "support has finished", gormsessions.WithID(s.ID))
	panicIf(err)

	var trace []Impersonation
	panicIf(db.Order("id").Find(&trace).Error)
	for _, row := range trace {
		fmt.Println(row.At.UTC().Format(time.TimeOnly), row.Event, "user", row.UserID, "by", row.ImpersonatorID, row.Ticket)
	}
	// Output:
	// acting as ada@example.com until 09:15:00
	// changing the password: refused
	// 09:00:00 created user 1 by 2 T-1815
	// 09:14:00 revoked user 1 by 2 T-1815
}

// The users are in one database, their sessions in another, which may be nearer,
// faster or less often backed up. Base in place of Session, with the owner's key
// beside it: there is no foreign key from one database to the other, so the
// application does what that would have done.
func Example_ownDatabase() {
	type UserSession struct {
		gormsessions.Base
		OwnerID uint `gorm:"not null;index"`
		Device  string
	}

	ctx := context.Background()
	users, db := openMemory(), openMemory() // two calls of gorm.Open
	panicIf(users.AutoMigrate(&User{}))
	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	panicIf(db.Use(sessions))

	ada := signUp(users, "ada@example.com")
	s := UserSession{OwnerID: ada.ID, Device: "Firefox on Linux"}
	panicIf(sessions.Create(ctx, &s))

	// Two queries, in place of WithOwner. A user who is gone is not signed in,
	// also if a session was left behind.
	authenticate := func(token string) (*UserSession, *User, error) {
		s, err := sessions.Authenticate(ctx, token)
		if err != nil {
			return nil, nil, err
		}
		var user User
		err = users.WithContext(ctx).Take(&user, s.OwnerID).Error
		if errors.Is(err, gorm.ErrRecordNotFound) {
			err = gormsessions.ErrNoSession
		}
		return s, &user, err
	}
	current, user, err := authenticate(string(s.Token))
	panicIf(err)
	fmt.Println(user.Email, "with", current.Device)

	// No transaction spans the two. So end the sessions first: if the second
	// step then fails, the user has to sign in again, and no more.
	_, err = sessions.Revoke(ctx, "account deleted", gormsessions.ForUser(ada.ID))
	panicIf(err)
	panicIf(users.Delete(ada).Error)
	_, _, err = authenticate(string(s.Token))
	fmt.Println(err)
	// Output:
	// ada@example.com with Firefox on Linux
	// gormsessions: no such session
}

// An audit table. A row written to Event.DB() inside a transaction of the
// application's is there if the fact is.
func Example_auditTable() {
	type Audit struct {
		ID        uint
		At        time.Time `gorm:"not null;index"`
		Event     string    `gorm:"not null;size:16"`
		SessionID uuid.UUID `gorm:"not null;index"` // no foreign key: the row outlives the session
		UserID    *uint     `gorm:"index"`
		Reason    string    `gorm:"not null;size:255"`
		Address   string    `gorm:"not null;size:64"`
	}
	type addressKey struct{} // of the client's address, which middleware puts into the context

	db := openMemory()
	panicIf(db.AutoMigrate(&Audit{}))
	sessions := gormsessions.New[UserSession](gormsessions.Config{
		OnEvent: func(ctx context.Context, e gormsessions.Event) {
			if e.Kind == gormsessions.EventExtended {
				return // one an hour for each session that is used
			}
			row := Audit{At: e.Time, Event: string(e.Kind), SessionID: e.SessionID, Reason: e.Reason}
			if id, ok := e.Owner.(uint); ok {
				row.UserID = &id
			}
			row.Address, _ = ctx.Value(addressKey{}).(string)
			if err := e.DB().Create(&row).Error; err != nil {
				slog.ErrorContext(ctx, "audit", "event", e, "error", err)
			}
		},
	})
	panicIf(db.Use(sessions))

	ctx := context.WithValue(context.Background(), addressKey{}, "192.0.2.7")
	s := UserSession{Device: "Firefox on Linux"}
	s.Owner = signUp(db, "ada@example.com")
	panicIf(sessions.Create(ctx, &s))

	// A transaction that fails takes its audit row with it: nothing was revoked.
	err := db.Transaction(func(tx *gorm.DB) error {
		n, err := sessions.With(tx).Revoke(ctx, "account closed", gormsessions.WithID(s.ID))
		panicIf(err)
		fmt.Println("ended:", n)
		return errors.New("the invoice is open")
	})
	fmt.Println("rolled back:", err)

	_, err = sessions.Revoke(ctx, "signed out", gormsessions.WithID(s.ID))
	panicIf(err)

	var rows []Audit
	panicIf(db.Order("id").Find(&rows).Error)
	for _, row := range rows {
		fmt.Printf("%s user %d from %s %q\n", row.Event, *row.UserID, row.Address, row.Reason)
	}
	// Output:
	// ended: 1
	// rolled back: the invoice is open
	// created user 1 from 192.0.2.7 ""
	// revoked user 1 from 192.0.2.7 "signed out"
}

// A refresh token, or a session whose user has gained rights: a new token for the
// same session. The client's requests under way still pass; after that, the old
// token is a stolen one.
func ExamplePlugin_Rotate() {
	ctx := context.Background()
	now := time.Date(2026, time.March, 2, 9, 0, 0, 0, time.UTC)
	db := openAt(&now)
	sessions := gormsessions.New[UserSession](gormsessions.Config{RotationGrace: 10 * time.Second})
	panicIf(db.Use(sessions))
	old := string(signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux").Token)

	// Two requests come with the same token at once.
	first, err := sessions.Authenticate(ctx, old)
	panicIf(err)
	second, err := sessions.Authenticate(ctx, old)
	panicIf(err)
	err = sessions.Rotate(ctx, first)
	panicIf(err)
	token := string(first.Token) // for the client
	err = sessions.Rotate(ctx, second)
	fmt.Println("the other has rotated:", errors.Is(err, gormsessions.ErrRotated)) // no token for the client

	_, err = sessions.Authenticate(ctx, old)
	fmt.Println("in its grace:", err)

	now = now.Add(time.Minute)
	_, err = sessions.Authenticate(ctx, old)
	fmt.Println("after it:", errors.Is(err, gormsessions.ErrReused))
	_, err = sessions.Authenticate(ctx, token)
	fmt.Println("the session has ended:", errors.Is(err, gormsessions.ErrNoSession))
	// Output:
	// the other has rotated: true
	// in its grace: <nil>
	// after it: true
	// the session has ended: true
}

// "Sudo mode": before a dangerous action the user proves again who they are,
// unless that was a moment ago.
func ExamplePlugin_Reauthenticate() {
	ctx := context.Background()
	now := time.Now().Add(-2 * time.Hour)
	db := openAt(&now)
	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	panicIf(db.Use(sessions))
	s := signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux") // two hours ago
	now = time.Now()

	current, err := sessions.Authenticate(ctx, string(s.Token))
	panicIf(err)
	deleteAccount := func() {
		if !current.IsFresh(10 * time.Minute) {
			fmt.Println("please enter your password")
			return
		}
		fmt.Println("deleted")
	}
	deleteAccount()

	// The password was right:
	panicIf(sessions.Reauthenticate(ctx, current))
	token := string(current.Token) // a new one: into the cookie with it
	deleteAccount()

	current, err = sessions.Authenticate(ctx, token)
	panicIf(err)
	fmt.Println("fresh:", current.IsFresh(10*time.Minute))
	// Output:
	// please enter your password
	// deleted
	// fresh: true
}

// Two devices for each user. The third takes the place of the one that was used
// least recently, or is refused.
func ExampleLimitPolicy() {
	ctx := context.Background()
	for _, policy := range []gormsessions.LimitPolicy{gormsessions.EvictOldest, gormsessions.Reject} {
		db := openMemory()
		sessions := gormsessions.New[UserSession](gormsessions.Config{MaxPerOwner: 2, OnLimit: policy})
		panicIf(db.Use(sessions))
		ada := signUp(db, "ada@example.com")

		for _, device := range []string{"television", "laptop", "phone"} {
			s := UserSession{Device: device}
			s.Owner = ada
			err := sessions.Create(ctx, &s)
			if errors.Is(err, gormsessions.ErrTooManySessions) {
				fmt.Printf("%s: sign out on another device first\n", device)
				continue
			}
			panicIf(err)
		}
		list, err := sessions.List(ctx, gormsessions.ForUser(ada))
		panicIf(err)
		for _, s := range list {
			fmt.Printf("%s %q\n", s.Device, s.RevokedReason)
		}
	}
	// Output:
	// phone ""
	// laptop ""
	// television "limit"
	// phone: sign out on another device first
	// laptop ""
	// television ""
}

// Ended sessions are kept for a month, for "recently signed out" and for support,
// and then deleted. Call it from a scheduler that is there anyway, or see
// RunPruner.
func ExamplePlugin_Prune() {
	ctx := context.Background()
	now := time.Date(2026, time.March, 2, 9, 0, 0, 0, time.UTC)
	db := openAt(&now)
	sessions := gormsessions.New[UserSession](gormsessions.Config{Retention: 30 * 24 * time.Hour})
	panicIf(db.Use(sessions))
	s := signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux")
	_, err := sessions.Revoke(ctx, "signed out", gormsessions.WithID(s.ID))
	panicIf(err)

	for _, days := range []int{29, 1} {
		now = now.AddDate(0, 0, days)
		n, err := sessions.Prune(ctx)
		panicIf(err)
		fmt.Println("pruned:", n)
	}
	// Output:
	// pruned: 0
	// pruned: 1
}

// The pruner of an application runs until the application ends, which waits for
// it before it closes the database.
func ExamplePlugin_RunPruner() {
	// In main: signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, stop := context.WithCancel(context.Background())
	db := openMemory()
	pruned := make(chan int64, 1)
	sessions := gormsessions.New[UserSession](gormsessions.Config{
		OnEvent: func(_ context.Context, e gormsessions.Event) {
			if e.Kind == gormsessions.EventPruned {
				pruned <- e.Count
			}
		},
	})
	panicIf(db.Use(sessions))
	s := signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux")
	_, err := sessions.Revoke(ctx, "signed out", gormsessions.WithID(s.ID))
	panicIf(err)

	var background sync.WaitGroup
	background.Go(func() {
		// An error is a mistake in the call. A database that fails is logged,
		// and tried again.
		panicIf(sessions.RunPruner(ctx, time.Hour))
	})

	// The application serves its users, until it is told to stop.
	fmt.Println("pruned:", <-pruned)
	stop()

	background.Wait()
	pool, err := db.DB()
	panicIf(err)
	panicIf(pool.Close())
	fmt.Println("stopped")
	// Output:
	// pruned: 1
	// stopped
}

// One line tells the log what happens to sessions. It never holds a token.
func ExampleLogEvents() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "session" {
			return slog.Attr{} // each run has others
		}
		return a
	}}))

	db := openMemory()
	sessions := gormsessions.New[UserSession](gormsessions.Config{OnEvent: gormsessions.LogEvents(logger)})
	panicIf(db.Use(sessions))

	s := signIn(db, signUp(db, "ada@example.com"), "Firefox on Linux")
	_, err := sessions.Revoke(context.Background(), "signed out", gormsessions.WithID(s.ID))
	panicIf(err)
	// Output:
	// level=INFO msg="session created" event.kind=created event.owner=1 event.count=1
	// level=INFO msg="session revoked" event.kind=revoked event.owner=1 event.reason="signed out" event.count=1
}

// openAt opens a database whose clock is now, for the examples to move.
func openAt(now *time.Time) *gorm.DB {
	db := openMemory()
	db.NowFunc = func() time.Time { return *now }
	return db
}
