package main

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gormsessions/gormsessions"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// User is who signs in.
type User struct {
	ID       uint
	Email    string `gorm:"not null;size:255;uniqueIndex"`
	Salt     []byte `gorm:"not null"`
	Password []byte `gorm:"not null"` // a digest of it, see derive
}

// Login is one signed-in device. Its token is the refresh token of the moment; it
// and those before it are a family, which ends as one.
type Login struct {
	gormsessions.Session[User, uint]
	Device string `gorm:"not null;size:255"`
}

const (
	maxBody   = 4 << 10
	maxDevice = 255
	saltBytes = 16
)

type service struct {
	db     *gorm.DB
	logins *gormsessions.Plugin[Login]
	keys   *keys
	log    *slog.Logger
	rounds int // of derive
}

func open(file string, keys *keys, now func() time.Time, log *slog.Logger) (*service, error) {
	db, err := gorm.Open(sqlite.Open(file+"?_foreign_keys=on&_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"),
		&gorm.Config{NowFunc: now, Logger: logger.NewSlogLogger(log, logger.Config{LogLevel: logger.Warn, ParameterizedQueries: true})})
	if err != nil {
		return nil, err
	}
	s := &service{db: db, keys: keys, log: log, rounds: 600_000}
	s.logins = gormsessions.New[Login](gormsessions.Config{
		IdleTimeout:     30 * 24 * time.Hour,
		AbsoluteTimeout: 180 * 24 * time.Hour,
		Prefix:          "refresh", // secret scanners can tell it
		Retention:       30 * 24 * time.Hour,
		OnEvent:         gormsessions.LogEvents(log),
	})
	if err := errors.Join(db.AutoMigrate(&User{}), db.Use(s.logins)); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *service) close() error {
	pool, err := s.db.DB()
	if err != nil {
		return err
	}
	return pool.Close()
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", s.login)
	mux.HandleFunc("POST /refresh", s.refresh)
	mux.HandleFunc("POST /logout", s.logout)
	mux.HandleFunc("GET /me", s.me)
	mux.HandleFunc("DELETE /me", s.deleteMe)
	return mux
}

func (s *service) signUp(ctx context.Context, email, password string) error {
	salt := make([]byte, saltBytes)
	rand.Read(salt)
	digest, err := s.derive(password, salt)
	if err != nil {
		return err
	}
	return s.db.WithContext(ctx).Create(&User{Email: email, Salt: salt, Password: digest}).Error
}

// login answers a password. An application also limits how often one may guess.
func (s *service) login(w http.ResponseWriter, r *http.Request) {
	var in struct{ Email, Password, Device string }
	if !decode(w, r, &in) {
		return
	}
	if utf8.RuneCountInString(in.Device) > maxDevice {
		fail(w, http.StatusBadRequest, "the device's name is too long")
		return
	}
	// An e-mail address that nobody has costs the same time, and fails alike.
	user := User{Salt: make([]byte, saltBytes)}
	if err := s.db.WithContext(r.Context()).Limit(1).Find(&user, "email = ?", in.Email).Error; err != nil {
		s.failed(w, r, err)
		return
	}
	digest, err := s.derive(in.Password, user.Salt)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if subtle.ConstantTimeCompare(digest, user.Password) != 1 {
		fail(w, http.StatusUnauthorized, "wrong e-mail address or password")
		return
	}
	login := Login{Device: in.Device}
	login.OwnerID = user.ID
	if err := s.logins.Create(r.Context(), &login); err != nil {
		s.failed(w, r, err)
		return
	}
	s.grant(w, r, &login)
}

func (s *service) refresh(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RefreshToken string `json:"refresh_token"`
	}
	if !decode(w, r, &in) {
		return
	}
	// One that was replaced, and has had its grace, is ErrReused: its session has
	// ended now, and every token of the family with it.
	login, err := s.logins.Authenticate(r.Context(), in.RefreshToken, gormsessions.WithOwner)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	err = s.logins.Rotate(r.Context(), login)
	// ErrRotated: the client has refreshed twice at once, as two tabs do, and the
	// other was first. Its answer carries the new refresh token; this one has an
	// access token only, and login.Token is empty. It matches ErrNoSession, but
	// nobody is signed out: so it is asked for first. (A client that the other
	// answer did not reach has to sign in again: the database has only a digest
	// of the new token.)
	if err != nil && !errors.Is(err, gormsessions.ErrRotated) {
		s.failed(w, r, err)
		return
	}
	s.grant(w, r, login)
}

// grant answers with an access token, and the refresh token if there is a new one.
func (s *service) grant(w http.ResponseWriter, r *http.Request, login *Login) {
	access, err := s.keys.sign(strconv.FormatUint(uint64(login.OwnerID), 10), login.ID, s.db.NowFunc())
	if err != nil {
		s.failed(w, r, err)
		return
	}
	answer(w, http.StatusOK, tokens{access, "Bearer", int(accessLife.Seconds()), string(login.Token)})
}

type tokens struct {
	Access    string `json:"access_token"`
	Type      string `json:"token_type"`
	ExpiresIn int    `json:"expires_in"`
	Refresh   string `json:"refresh_token,omitempty"`
}

// logout ends the session, also by a token whose successor the client has lost.
func (s *service) logout(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RefreshToken string `json:"refresh_token"`
	}
	if !decode(w, r, &in) {
		return
	}
	login, err := s.logins.Authenticate(r.Context(), in.RefreshToken)
	if err == nil {
		_, err = s.logins.Revoke(r.Context(), "signed out", gormsessions.WithID(login.ID))
	}
	if err != nil && !errors.Is(err, gormsessions.ErrNoSession) { // that has ended already
		s.failed(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// me asks no database.
func (s *service) me(w http.ResponseWriter, r *http.Request) {
	if c := s.authorize(w, r); c != nil {
		answer(w, http.StatusOK, map[string]any{"user": c.Subject, "session": c.Session})
	}
}

// deleteMe is dangerous: an access token whose session has ended will not do.
func (s *service) deleteMe(w http.ResponseWriter, r *http.Request) {
	c := s.authorize(w, r)
	if c == nil {
		return
	}
	login, err := s.logins.Get(r.Context(), gormsessions.Active, gormsessions.WithID(c.Session), gormsessions.WithOwner)
	if err == nil {
		err = s.db.WithContext(r.Context()).Delete(login.Owner).Error // and all sessions
	}
	if err != nil {
		s.failed(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// authorize returns what the request's access token says, or answers 401 and
// returns nil.
func (s *service) authorize(w http.ResponseWriter, r *http.Request) *claims {
	challenge := "Bearer"
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		if c, err := s.keys.verify(token, s.db.NowFunc()); err == nil {
			return c
		}
		challenge = `Bearer error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	fail(w, http.StatusUnauthorized, "no valid access token: refresh it")
	return nil
}

// failed tells a session that has ended from a database that is down: only the
// first is a reason to sign in again.
func (s *service) failed(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, gormsessions.ErrNoSession):
		fail(w, http.StatusUnauthorized, "please sign in again")
	case errors.Is(err, gormsessions.ErrInvalidValue):
		fail(w, http.StatusBadRequest, "a value cannot be stored")
	default:
		s.log.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
		fail(w, http.StatusServiceUnavailable, "try again later")
	}
}

// decode reads a body that is one JSON object of the wanted fields, or answers what
// is wrong with it. A form on another site cannot send that type.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, "the body must be application/json")
		return false
	}
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	body.DisallowUnknownFields()
	err := body.Decode(into)
	if err == nil {
		if _, err = body.Token(); err == io.EOF {
			return true
		}
	}
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		fail(w, http.StatusRequestEntityTooLarge, "the body is too large")
		return false
	}
	fail(w, http.StatusBadRequest, "the body is not what is expected here")
	return false
}

func fail(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]string{"error": text})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // there are tokens in it
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that is gone needs no answer
}

// derive is slow on purpose: so is guessing, for who has stolen the table.
func (s *service) derive(password string, salt []byte) ([]byte, error) {
	return pbkdf2.Key(sha256.New, password, salt, s.rounds, sha256.Size)
}
