package conformance

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

func (s suite) token(t *testing.T) {
	t.Run("R03_MalformedTokenCostsNoQuery", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{Prefix: "acme"})
		live := string(e.sign().Token)
		last := live[len(live)-1:]
		for _, token := range []string{
			strings.TrimPrefix(live, "acme_"), "other_" + strings.TrimPrefix(live, "acme_"), strings.ToUpper(live[:4]) + live[4:],
			live[:len(live)-1], live + last, live[:10] + "-" + live[11:], live[:10] + "_" + live[11:], live[:len(live)-6] + "000000",
			strings.Repeat("a", len(live)), "acme_",
		} {
			statements := e.log.since(func() { e.refused(gormsessions.Token(token)) })
			if len(statements) > 0 {
				t.Errorf("%d queries for a malformed token: %v", len(statements), statements)
			}
		}
		// Control: the live one is found, by a query.
		if statements := e.log.since(func() {
			e.authenticate(&UserSession{Session: gormsessions.Session[User, uint]{Base: gormsessions.Base{Token: gormsessions.Token(live)}}})
		}); len(statements) == 0 {
			t.Error("no query for a live token")
		}
	})

	t.Run("R04_VariantsOfALiveToken", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		live := string(e.sign().Token)
		rounds := 2_000
		if s.Database.Name == "memory" && s.Variant.Name == "default" {
			rounds = s.count(100_000, 1_000_000)
		}
		for i := range rounds {
			if v := variant(live, i); v != live {
				if _, err := e.sessions.Lookup(e.ctx, v); err != gormsessions.ErrNoSession {
					t.Fatalf("variant %d: got %v, want ErrNoSession", i, err)
				}
			}
		}
		// Control: a foreign token is found in any case but its own only if it
		// is the same.
		_, err := e.sessions.Lookup(e.ctx, live)
		must(t, err)
	})

	t.Run("R05_EmptyToken", func(t *testing.T) {
		for _, config := range []gormsessions.Config{{}, {AcceptForeign: true}} {
			e := s.start(t, config)
			e.sign()
			if statements := e.log.since(func() { e.refused("") }); len(statements) > 0 {
				t.Errorf("queries for an empty token: %v", statements)
			}
			n, err := e.sessions.Revoke(e.ctx, "", gormsessions.WithToken(""))
			must(t, err)
			want(t, "revoked by an empty token", n, 0)
			// An empty digest is neither stored nor asked for.
			var list []UserSession
			wantErr(t, "where an empty digest", e.db.Where("token_digest = ?", gormsessions.Digest{}).Find(&list).Error, gormsessions.ErrUnsafeCreate)
		}
	})

	t.Run("R06_LongToken", func(t *testing.T) {
		hashed := 0
		e := s.start(t, gormsessions.Config{AcceptForeign: true, Hashers: []gormsessions.Hasher{counting{gormsessions.Hash(crypto.SHA256), &hashed}}})
		for _, n := range []int{257, 1 << 20} {
			hashed = 0
			if statements := e.log.since(func() { e.refused(gormsessions.Token(strings.Repeat("x", n))) }); len(statements) > 0 || hashed > 0 {
				t.Errorf("%d bytes: %d queries, %d digests, want none", n, len(statements), hashed)
			}
		}
		hashed = 0
		e.refused(gormsessions.Token(strings.Repeat("x", 256)))
		want(t, "digests of 256 bytes", hashed, 2)
	})

	t.Run("R07_UnknownTokenNeverBecomesASession", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{AcceptForeign: true})
		for _, token := range []string{"chosen-by-the-attacker", strings.Repeat("A", 49)} {
			e.refused(gormsessions.Token(token))
			fixed := UserSession{}
			fixed.OwnerID, fixed.Token = e.user.ID, gormsessions.Token(token)
			wantErr(t, "create with a foreign token", e.db.Create(&fixed).Error, gormsessions.ErrInvalidValue)
			e.refused(gormsessions.Token(token))
		}
		want(t, "sessions", e.count(), 0)
		// A token of the plugin's own making is kept.
		made := e.sign()
		e.exec("DELETE FROM {t}")
		kept := e.sign(func(u *UserSession) { u.Token = made.Token })
		want(t, "token kept", kept.Token == made.Token, true)
		want(t, "id", e.authenticate(kept).ID, kept.ID)
	})

	t.Run("R11_TokenOfAnotherKind", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		keys := gormsessions.New[Key](gormsessions.Config{})
		prefixed := gormsessions.New[Badge](gormsessions.Config{Prefix: "badge"})
		must(t, e.db.Use(keys))
		must(t, e.db.Use(prefixed))
		key, badge := Key{Name: "k"}, Badge{}
		key.OwnerID, badge.OwnerID = e.user.ID, e.user.ID
		must(t, e.db.Create(&key).Error)
		must(t, e.db.Create(&badge).Error)
		session := e.sign()
		e.refused(key.Token)
		e.refused(badge.Token)
		for _, token := range []gormsessions.Token{session.Token, badge.Token} {
			_, err := keys.Authenticate(e.ctx, string(token))
			wantErr(t, "key", err, gormsessions.ErrNoSession)
		}
		for _, token := range []gormsessions.Token{session.Token, key.Token} {
			_, err := prefixed.Authenticate(e.ctx, string(token))
			wantErr(t, "badge", err, gormsessions.ErrNoSession)
		}
		_, err := keys.Authenticate(e.ctx, string(key.Token))
		must(t, err)
	})

	t.Run("Hashers", func(t *testing.T) {
		pepper := bytes.Repeat([]byte("p"), 32)
		old := s.start(t, gormsessions.Config{Hashers: []gormsessions.Hasher{gormsessions.Hash(crypto.SHA256)}})
		session := old.sign()
		db := s.again(t, old.dialect, old.clock, old.log)
		both := gormsessions.New[UserSession](gormsessions.Config{Hashers: []gormsessions.Hasher{
			gormsessions.HMAC(crypto.SHA256, pepper), gormsessions.Hash(crypto.SHA256)}})
		must(t, db.Use(both))
		statements := old.log.since(func() {
			_, err := both.Lookup(old.ctx, string(session.Token))
			must(t, err)
		})
		want(t, "queries with two hashers", len(statements), 1)
		got, err := both.Get(old.ctx, gormsessions.WithToken(string(session.Token)))
		must(t, err)
		want(t, "WithToken", got.ID, session.ID)
		never := gormsessions.New[UserSession](gormsessions.Config{TouchInterval: gormsessions.Never, Hashers: []gormsessions.Hasher{
			gormsessions.HMAC(crypto.SHA256, pepper), gormsessions.Hash(crypto.SHA256)}})
		must(t, s.again(t, old.dialect, old.clock, old.log).Use(never))
		_, err = never.Authenticate(old.ctx, string(session.Token))
		must(t, err)
		want(t, "digest where reads never write", string(old.row(session.ID).TokenDigest), string(session.TokenDigest))
		only := gormsessions.New[UserSession](gormsessions.Config{Hashers: []gormsessions.Hasher{gormsessions.HMAC(crypto.SHA256, pepper)}})
		must(t, s.again(t, old.dialect, old.clock, old.log).Use(only))
		_, err = only.Lookup(old.ctx, string(session.Token))
		wantErr(t, "a hasher that is not listed", err, gormsessions.ErrNoSession)
	})

	t.Run("R12_DigestedAnewOnUse", func(t *testing.T) {
		pepper := bytes.Repeat([]byte("p"), 32)
		e := s.start(t, gormsessions.Config{})
		live, idle := make([]*UserSession, 40), e.sign()
		for i := range live {
			live[i] = e.sign()
		}
		adopting := func(hashers ...gormsessions.Hasher) *gormsessions.Plugin[UserSession] {
			t.Helper()
			p := gormsessions.New[UserSession](gormsessions.Config{Hashers: hashers})
			must(t, s.again(t, e.dialect, e.clock, e.log).Use(p))
			return p
		}
		peppered, plain := gormsessions.HMAC(crypto.SHA256, pepper), gormsessions.Hash(crypto.SHA256)
		both := adopting(peppered, plain)
		for i, v := range live {
			if i%2 == 0 {
				e.authenticate(v) // used within the interval
			}
			var wg sync.WaitGroup
			for range 1 + i%2 { // also two requests at once
				wg.Go(func() {
					got, err := both.Authenticate(e.ctx, string(v.Token))
					if err != nil {
						t.Errorf("session %d: %v", i, err)
						return
					}
					want(t, "digest returned", string(got.TokenDigest), string(peppered.Digest(string(v.Token))))
				})
			}
			wg.Wait()
			want(t, "digest stored", string(e.row(v.ID).TokenDigest), string(peppered.Digest(string(v.Token))))
		}
		// The old hasher ends exactly the sessions that nobody used.
		only := adopting(peppered)
		for _, v := range live {
			_, err := only.Authenticate(e.ctx, string(v.Token))
			must(t, err)
			want(t, "token on a node that knows no pepper", e.lost(v), true)
		}
		_, err := only.Authenticate(e.ctx, string(idle.Token))
		want(t, "not used meanwhile", err, gormsessions.ErrNoSession)
		e.authenticate(idle)
	})

	// The README's recipe, at the size of a real application: a pepper is adopted,
	// and nobody who comes back meanwhile has to sign in again.
	t.Run("R12_Keyring", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{TouchInterval: day})
		all := e.many(s.count(400, 100_000), e.clock.Now().Add(30*day))
		peppered, plain := gormsessions.HMAC(crypto.SHA256, bytes.Repeat([]byte("p"), 32)), gormsessions.Hash(crypto.SHA256)
		nodes := make([]*gormsessions.Plugin[UserSession], 3)
		for i, hashers := range [][]gormsessions.Hasher{{plain, peppered}, {peppered, plain}, {peppered}} {
			nodes[i] = gormsessions.New[UserSession](gormsessions.Config{TouchInterval: day, Hashers: hashers})
			db := s.again(t, e.dialect, e.clock, e.log)
			must(t, db.Use(nodes[i]))
		}
		each := func(list []UserSession, do func(token string) error) (failed int64) {
			var n atomic.Int64
			var wg sync.WaitGroup
			for part := range slices.Chunk(list, len(list)/8+1) {
				wg.Go(func() {
					for _, v := range part {
						if err := do(string(v.Token)); errors.Is(err, gormsessions.ErrNoSession) {
							n.Add(1)
						} else if err != nil {
							t.Errorf("got %v", err)
						}
					}
				})
			}
			wg.Wait()
			return n.Load()
		}
		authenticate := func(p *gormsessions.Plugin[UserSession]) func(string) error {
			return func(token string) error { _, err := p.Authenticate(e.ctx, token); return err }
		}
		lookup := func(p *gormsessions.Plugin[UserSession]) func(string) error {
			return func(token string) error { _, err := p.Lookup(e.ctx, token); return err }
		}
		back, away := all[len(all)/10:], all[:len(all)/10]
		want(t, "lost in the first step", each(back[:len(back)/10], authenticate(nodes[0])), 0)
		e.clock.Advance(time.Second)
		deployed := e.clock.Now()
		left := func() int64 { return e.count(gormsessions.Active, gormsessions.UnusedSince(deployed)) }
		want(t, "of the old hasher", left(), int64(len(all)))
		want(t, "lost in the second step", each(back, authenticate(nodes[1])), 0)
		want(t, "of the old hasher", left(), int64(len(away)))
		want(t, "lost by the old node", each(back[:100], lookup(nodes[0])), 0)
		want(t, "lost with the old hasher", each(back, lookup(nodes[2])), 0)
		want(t, "ended with the old hasher", each(away, lookup(nodes[2])), int64(len(away)))
	})

	t.Run("AcceptForeign", func(t *testing.T) {
		// A row that ecto_sessions left: the salted digest, there in hexadecimal.
		salted := gormsessions.Salted(crypto.SHA256, []byte("your-secret-salt"))
		e := s.start(t, gormsessions.Config{AcceptForeign: true, Hashers: []gormsessions.Hasher{gormsessions.Hash(crypto.SHA256), salted}})
		session := e.sign()
		digest, err := hex.DecodeString("709a5d6cba7d3162a1035b0a9cd13064ee4cbe4587cbcc4e378d831e728310c7")
		must(t, err)
		e.exec("UPDATE {t} SET token_digest = ? WHERE id = ?", digest, session.ID)
		got, err := e.sessions.Authenticate(e.ctx, "sample")
		must(t, err)
		want(t, "imported session", got.ID, session.ID)
		e.refused("Sample")
		e.refused(session.Token)
		// A digest that was stolen is no token, also beside Plaintext.
		both := s.start(t, gormsessions.Config{AcceptForeign: true, Hashers: []gormsessions.Hasher{gormsessions.Hash(crypto.SHA256), gormsessions.Plaintext()}})
		both.refused(gormsessions.Token(both.sign().TokenDigest))
	})
}

func (e *env) lost(v *UserSession) bool {
	_, err := e.sessions.Lookup(e.ctx, string(v.Token))
	return errors.Is(err, gormsessions.ErrNoSession)
}

// Key and Badge are other kinds of sessions.
type Key struct {
	gormsessions.Session[User, uint]
	Name string
}

type Badge struct {
	gormsessions.Session[User, uint]
}

type counting struct {
	gormsessions.Hasher
	n *int
}

func (c counting) Digest(token string) []byte { *c.n++; return c.Hasher.Digest(token) }

// variant changes a token a little: what a careless comparison would let pass.
func variant(live string, i int) string {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_=+/ \t\n\x00.%"
	fixed := []string{
		live + " ", " " + live, live + "\n", live + "\x00", live + "=", live + "==", live + "%00", "\ufeff" + live,
		strings.ToLower(live), strings.ToUpper(live), live + live, base64.StdEncoding.EncodeToString([]byte(live)),
		base64.RawURLEncoding.EncodeToString([]byte(live)), strings.ReplaceAll(live, "O", "0"), strings.ReplaceAll(live, "l", "1"),
	}
	if i < len(fixed) {
		return fixed[i]
	}
	if i -= len(fixed); i < len(live) {
		return live[:i]
	}
	if i -= len(live); i < len(live) {
		return live[i+1:]
	}
	b := []byte(live)
	for range 1 + rand.IntN(3) {
		switch at := rand.IntN(len(b)); rand.IntN(5) {
		case 0:
			b[at] = alphabet[rand.IntN(len(alphabet))]
		case 1:
			b[at] ^= 0x20 // flips a letter's case
		case 2:
			b = append(b[:at], b[at+1:]...)
		case 3:
			b = append(b[:at], append([]byte{alphabet[rand.IntN(len(alphabet))]}, b[at:]...)...)
		case 4:
			other := rand.IntN(len(b))
			b[at], b[other] = b[other], b[at]
		}
	}
	return string(b)
}

func (s suite) secrets(t *testing.T) {
	t.Run("R10_NothingShowsASecret", func(t *testing.T) {
		pepper := strings.Repeat("pepper-of-ours--", 2)
		config := gormsessions.Config{Hashers: []gormsessions.Hasher{
			gormsessions.HMAC(crypto.SHA256, []byte(pepper)), gormsessions.Plaintext(), gormsessions.Salted(crypto.SHA256, []byte(pepper))}}
		e := s.start(t, config)
		session := e.sign()
		token := string(session.Token)
		digest := []byte(session.TokenDigest)
		plain := gormsessions.Digest(gormsessions.Plaintext().Digest(token))
		shown := func(what, text string) {
			t.Helper()
			for _, secret := range []string{
				token, pepper, string(digest), hex.EncodeToString(digest), strings.ToUpper(hex.EncodeToString(digest)),
				fmt.Sprint(digest), hex.EncodeToString([]byte(token)), hex.EncodeToString([]byte(pepper)), fmt.Sprint([]byte(token)), fmt.Sprint([]byte(pepper)),
				base64.StdEncoding.EncodeToString(digest), base64.StdEncoding.EncodeToString([]byte(token)), fmt.Sprintf("%q", string(digest)),
			} {
				if strings.Contains(text, secret) {
					t.Errorf("%s shows a secret: %.200q", what, text)
				}
			}
		}
		type holder struct {
			Session gormsessions.Token
			Digest  gormsessions.Digest
			Config  gormsessions.Config `json:"-" xml:"-"`
		}
		held := holder{session.Token, plain, config}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%08b"} {
			for _, v := range []any{session.Token, session.TokenDigest, plain, session, *session, held, &held, config, []any{session.Token}, map[string]any{"t": session.TokenDigest}} {
				shown("fmt "+verb, fmt.Sprintf(verb, v))
			}
		}
		shown("panic", func() (text string) {
			defer func() { text = fmt.Sprint(recover()) }()
			panic(session.Token)
		}())
		for _, v := range []any{session, held} {
			text, err := json.Marshal(v)
			must(t, err)
			shown("json", string(text))
		}
		text, err := xml.Marshal(struct {
			XMLName xml.Name `xml:"x"`
			Token   gormsessions.Token
			Attr    gormsessions.Digest `xml:",attr"`
			Digest  gormsessions.Digest
		}{Token: session.Token, Attr: plain, Digest: plain})
		must(t, err)
		shown("xml", string(text))
		text, err = xml.Marshal(session)
		must(t, err)
		shown("xml of a session", string(text))
		var out bytes.Buffer
		must(t, gob.NewEncoder(&out).Encode(struct {
			T gormsessions.Token
			D gormsessions.Digest
		}{session.Token, plain}))
		shown("gob", out.String())
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("m", "token", session.Token, "digest", plain, "session", session, "held", held)
		}
		shown("slog", out.String())
		// Control: the probe does find what is printed.
		if !strings.Contains(fmt.Sprint(string(session.Token)), token) {
			t.Error("the probe finds nothing")
		}

		// And no client's JSON makes one.
		var back UserSession
		must(t, json.Unmarshal([]byte(`{"Token":"abc","TokenDigest":"YWJj"}`), &back))
		want(t, "token from JSON", len(back.Token)+len(back.TokenDigest), 0)
	})

	t.Run("R08_R10_LogsAndStorage", func(t *testing.T) {
		var out bytes.Buffer
		dialect, c := s.Dialect(t), newClock()
		db := s.again(t, dialect, c, logger.New(log.New(&out, "", 0), logger.Config{LogLevel: logger.Info}))
		sessions := gormsessions.New[UserSession](gormsessions.Config{Hashers: []gormsessions.Hasher{gormsessions.Hash(crypto.SHA256), gormsessions.Plaintext()}})
		must(t, db.Use(sessions))
		user := User{Name: "ada"}
		must(t, db.Create(&user).Error)
		ctx := context.Background()
		var tokens, digests []string
		for i := range 20 {
			session := UserSession{Device: fmt.Sprint(i)}
			session.OwnerID = user.ID
			must(t, db.Create(&session).Error)
			tokens = append(tokens, string(session.Token))
			digests = append(digests, string(session.TokenDigest), hex.EncodeToString(session.TokenDigest))
			_, err := sessions.Authenticate(ctx, string(session.Token), gormsessions.WithOwner)
			must(t, err)
			must(t, sessions.Extend(ctx, &session))
			duplicate := session
			duplicate.ID, duplicate.TokenDigest = uuid.Nil, nil
			if err := db.Create(&duplicate).Error; err == nil {
				t.Error("a duplicate token was stored")
			} else {
				out.WriteString(err.Error())
			}
			_, err = sessions.Revoke(ctx, "test", gormsessions.WithToken(string(session.Token)))
			must(t, err)
		}
		absent := func(what string, text []byte, secrets []string) {
			t.Helper()
			for _, secret := range secrets {
				if bytes.Contains(text, []byte(secret)) {
					t.Fatalf("%s holds a secret", what)
				}
			}
		}
		absent("GORM's log", out.Bytes(), append(digests, tokens...))
		if !strings.Contains(out.String(), "[redacted]") {
			t.Error("the log shows no statement with a digest: the test looks at nothing")
		}
		var dump []map[string]any
		must(t, db.Table(tableOf(t, db, &UserSession{})).Find(&dump).Error)
		want(t, "rows in the dump", len(dump), 20)
		text := fmt.Sprintf("%v %s", dump, dump)
		absent("a dump", []byte(text), tokens)
		if db.Name() == "sqlite" && s.Conns != 1 {
			var path string
			must(t, db.Raw("SELECT file FROM pragma_database_list WHERE name = 'main'").Scan(&path).Error)
			files, err := filepath.Glob(path + "*")
			must(t, err)
			held := 0
			for _, file := range files {
				content, err := os.ReadFile(file)
				must(t, err)
				absent(file, content, tokens)
				if bytes.Contains(content, []byte(digests[0])) {
					held++
				}
			}
			if held == 0 {
				t.Errorf("no file of %v holds a digest: the test looks at nothing", files)
			}
		}
	})

	t.Run("R10_DuplicateToken", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{Hashers: []gormsessions.Hasher{gormsessions.Plaintext()}})
		first := e.sign()
		second := &UserSession{}
		second.OwnerID, second.Token = e.user.ID, first.Token
		err := e.db.Create(second).Error
		wantErr(t, "duplicate", err, gorm.ErrDuplicatedKey)
		wantErr(t, "duplicate", err, gormsessions.ErrUnsafeCreate)
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), string(first.Token)) {
			t.Error("the error shows the token")
		}
	})

	t.Run("DatabaseErrorIsNotNoSession", func(t *testing.T) {
		if s.Prepare != nil {
			t.Skip("statements go to pools that the test does not close")
		}
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		cancelled, cancel := context.WithCancel(e.ctx)
		cancel()
		_, err := e.sessions.Authenticate(cancelled, string(session.Token))
		if err == nil || errors.Is(err, gorm.ErrRecordNotFound) {
			t.Errorf("cancelled: got %v", err)
		}
		pool, err := e.db.DB()
		must(t, err)
		must(t, pool.Close())
		for name, call := range map[string]func() error{
			"Authenticate": func() error { _, err := e.sessions.Authenticate(e.ctx, string(session.Token)); return err },
			"Lookup":       func() error { _, err := e.sessions.Lookup(e.ctx, string(session.Token)); return err },
			"Get":          func() error { _, err := e.sessions.Get(e.ctx, gormsessions.WithID(session.ID)); return err },
			"Extend":       func() error { return e.sessions.Extend(e.ctx, session) },
			"Revoke":       func() error { _, err := e.sessions.Revoke(e.ctx, "", gormsessions.Active); return err },
		} {
			err := call()
			if err == nil || errors.Is(err, gormsessions.ErrNoSession) || errors.Is(err, gorm.ErrRecordNotFound) {
				t.Errorf("%s on a closed database: got %v", name, err)
			}
			wantText(t, name, err, "gormsessions: "+strings.ToLower(name))
		}
	})
}
