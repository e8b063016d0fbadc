package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/mail"
	"strconv"
	"strings"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// form is a page with fields, as first shown or with what was wrong.
type form struct {
	Email, ReturnTo, Name string
	Error                 string
}

// errWrong is the one answer to a wrong password and an unknown e-mail.
var errWrong = errors.New("the e-mail or the password is wrong")

// errTooFast is the answer to too many wrong ones.
type errTooFast time.Duration

func (e errTooFast) Error() string {
	return "too many tries: please wait " + many(time.Duration(e.seconds()), "second") + ", then try again"
}

func (e errTooFast) seconds() int { return int(math.Ceil(time.Duration(e).Seconds())) }

// again shows a form with what was wrong. Other errors are for the caller to return.
func (s *site) again(w http.ResponseWriter, err error, name string, v view, f form) error {
	status := http.StatusUnprocessableEntity
	var wrong invalid
	var fast errTooFast
	switch {
	case errors.As(err, &fast):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", strconv.Itoa(fast.seconds()))
		err = fast
	case errors.Is(err, errWrong):
		err = errWrong
	case errors.As(err, &wrong):
		err = wrong
	default:
		return err
	}
	text := err.Error()
	f.Error = strings.ToUpper(text[:1]) + text[1:] + "."
	v.Data, v.Title = f, "Error: "+v.Title // the title is what a screen reader says first
	s.views.render(w, status, name, v)
	return nil
}

// invalid is what is wrong with a form.
type invalid string

func (e invalid) Error() string { return string(e) }

// credentials finds the user of an e-mail and password, or errWrong, errTooFast.
// Tries are counted by who, and by the address.
func (s *site) credentials(r *http.Request, who limit, email, password string) (*User, error) {
	limits := []limit{who, byAddress(r)}
	if wait := s.attempts.begin(limits...); wait > 0 {
		return nil, errTooFast(wait)
	}
	var user User
	if email != "" && len(password) <= longestPassword { // else there is no such user
		if err := s.db.WithContext(r.Context()).Where("email = ?", email).Limit(1).Find(&user).Error; err != nil {
			return nil, err
		}
		if user.Email != email {
			user = User{} // to MariaDB an á is an a: other spellings would have tries of their own
		}
	}
	ok, err := s.passwords.verify(r.Context(), user.Password, password[:min(len(password), longestPassword)])
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errWrong
	}
	s.attempts.succeed(limits...)
	return &user, nil
}

var signInView = view{Title: "Sign in"}

func (s *site) signInPage(w http.ResponseWriter, r *http.Request) error {
	if device, err := current(r); err != nil {
		return err
	} else if device != nil {
		http.Redirect(w, r, sessionhttp.ReturnTo(r), http.StatusSeeOther)
		return nil
	}
	v := signInView
	v.Data = form{ReturnTo: sessionhttp.ReturnTo(r)}
	return s.show(w, r, "sign-in", v)
}

func (s *site) signIn(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	f := form{Email: normal(r.PostFormValue("email")), ReturnTo: sessionhttp.ReturnTo(r)}
	email := f.Email
	if !validEmail(email) {
		email = "" // nobody's: it takes as long, and no room among the counts
	}
	user, err := s.credentials(r, byAccount(email), email, r.PostFormValue("password"))
	if err == nil {
		err = s.enter(w, r, user)
	}
	if err != nil {
		return s.again(w, err, "sign-in", signInView, f)
	}
	http.Redirect(w, r, f.ReturnTo, http.StatusSeeOther)
	return nil
}

// enter signs the user in on the device that the request comes from.
func (s *site) enter(w http.ResponseWriter, r *http.Request, user *User) error {
	device := Device{UserAgent: clean(r.UserAgent(), 255), Address: addressOf(r)}
	device.OwnerID = user.ID
	if err := s.web.SignIn(w, r, &device); err != nil {
		return err
	}
	// The password may have been changed since it was read, and all devices
	// signed out, but not this one, which was no device yet. The lock waits for a
	// change that is under way; one that comes later signs this one out.
	var current User
	err := s.db.WithContext(r.Context()).Clauses(clause.Locking{Strength: "SHARE"}).Limit(1).Find(&current, user.ID).Error
	if err == nil && current.Password == user.Password {
		return nil
	}
	if err == nil {
		err = errWrong
	}
	if _, failed := s.sessions.Revoke(r.Context(), "password changed meanwhile", gormsessions.WithID(device.ID)); failed != nil {
		err = failed
	}
	if failed := s.web.SignOut(w, r); failed != nil { // takes the cookie back
		err = failed
	}
	return err
}

func (s *site) signOut(w http.ResponseWriter, r *http.Request) error {
	if err := s.web.SignOut(w, r); err != nil {
		return err
	}
	http.Redirect(w, r, "/sign-in?done=signed-out", http.StatusSeeOther)
	return nil
}

var signUpView = view{Title: "Create an account"}

func (s *site) signUpPage(w http.ResponseWriter, r *http.Request) error {
	v := signUpView
	v.Data = form{}
	return s.show(w, r, "sign-up", v)
}

// signUp makes an account, and tells whether an e-mail has one: without sending
// mail there is no way round. A real site sends a link there, whatever is the case.
func (s *site) signUp(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	f := form{Email: normal(r.PostFormValue("email"))}
	user, err := s.register(r, f.Email, r.PostFormValue("password"))
	if err == nil {
		err = s.enter(w, r, user)
	}
	if err != nil {
		return s.again(w, err, "sign-up", signUpView, f)
	}
	http.Redirect(w, r, "/account", http.StatusSeeOther)
	return nil
}

func (s *site) register(r *http.Request, email, password string) (*User, error) {
	if !validEmail(email) {
		return nil, invalid("this is not an e-mail address")
	}
	if err := checkPassword(password); err != nil {
		return nil, err
	}
	if wait := s.attempts.begin(limit{"sign-up", byAddress(r).value, 20}); wait > 0 {
		return nil, errTooFast(wait)
	}
	return s.addUser(r.Context(), email, password)
}

func (s *site) addUser(ctx context.Context, email, password string) (*User, error) {
	hash, err := s.passwords.hash(ctx, password)
	if err != nil {
		return nil, err
	}
	user := User{Email: email, Password: hash}
	err = s.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		var taken int64
		if err := tx.Model(&User{}).Where("email = ?", email).Count(&taken).Error; err != nil {
			return err
		}
		if taken > 0 {
			return errTaken
		}
		if err := tx.Create(&user).Error; err != nil {
			return err
		}
		return tx.Create(&Project{UserID: user.ID, Name: "My project"}).Error
	})
	if errors.Is(err, gorm.ErrDuplicatedKey) { // somebody else, in the meantime
		err = errTaken
	}
	return &user, err
}

const errTaken = invalid("there is an account with this e-mail: sign in instead, or take another")

var passwordView = view{Title: "Change your password", Tab: "devices"}

func (s *site) passwordPage(w http.ResponseWriter, r *http.Request, device *Device) error {
	v := passwordView
	v.Device, v.Data = device, form{}
	return s.show(w, r, "password", v)
}

// changePassword signs out all other devices in the transaction that changes the
// password: both happen, or neither.
func (s *site) changePassword(w http.ResponseWriter, r *http.Request, device *Device) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	err := s.setPassword(w, r, device, r.PostFormValue("current"), r.PostFormValue("new"))
	if err != nil {
		v := passwordView
		v.Device = device
		return s.again(w, err, "password", v, form{})
	}
	http.Redirect(w, r, "/account?done=password", http.StatusSeeOther)
	return nil
}

func (s *site) setPassword(w http.ResponseWriter, r *http.Request, device *Device, current, next string) error {
	if err := checkPassword(next); err != nil {
		return err
	}
	user, err := s.proved(w, r, device, current)
	if err != nil {
		return err
	}
	hash, err := s.passwords.hash(r.Context(), next)
	if err != nil {
		return err
	}
	err = s.db.WithContext(r.Context()).Transaction(func(tx *gorm.DB) error {
		// The password first: it locks the user's row, for which enter waits.
		changed := tx.Model(user).Where("password = ?", user.Password).Update("password", hash)
		if changed.Error != nil {
			return changed.Error
		}
		if changed.RowsAffected == 0 {
			return invalid("the password was changed meanwhile: please try again")
		}
		_, err := s.sessions.With(tx).Revoke(r.Context(), "password changed", gormsessions.ForUser(user), gormsessions.Except(device))
		return err
	})
	if err == nil {
		s.live.wake(user.ID) // what OnEvent told of in the transaction is true only now
	}
	return err
}

// proved checks the password of who is signed in, and gives the session a new token.
func (s *site) proved(w http.ResponseWriter, r *http.Request, device *Device, password string) (*User, error) {
	user, err := s.credentials(r, bySession(device.ID), device.Owner.Email, password)
	switch {
	case errors.Is(err, errWrong):
		return nil, invalid("that is not your password")
	case err != nil:
		return nil, err
	}
	err = s.web.Reauthenticate(w, r, device)
	if errors.Is(err, gormsessions.ErrRotated) {
		err = invalid("you have done that in another window: please try again")
	}
	return user, err
}

var confirmView = view{Title: "Confirm your password"}

func (s *site) confirmPage(w http.ResponseWriter, r *http.Request, device *Device) error {
	v := confirmView
	v.Device, v.Data = device, form{ReturnTo: sessionhttp.ReturnTo(r)}
	return s.show(w, r, "confirm", v)
}

func (s *site) confirm(w http.ResponseWriter, r *http.Request, device *Device) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	f := form{ReturnTo: sessionhttp.ReturnTo(r)}
	if _, err := s.proved(w, r, device, r.PostFormValue("password")); err != nil {
		v := confirmView
		v.Device = device
		return s.again(w, err, "confirm", v, f)
	}
	http.Redirect(w, r, f.ReturnTo, http.StatusSeeOther)
	return nil
}

// badForm is a body that is no form. One that is too large is told so by fail.
func badForm(err error) error {
	if errors.As(err, new(*http.MaxBytesError)) {
		return err
	}
	return problem{http.StatusBadRequest, "That could not be read", "Please go back and send the form again."}
}

func normal(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

func validEmail(email string) bool {
	address, err := mail.ParseAddress(email)
	return err == nil && address.Address == email && len(email) <= 254 && clean(email, 254) == email
}

func checkPassword(password string) error {
	switch {
	case len([]rune(password)) < shortestPassword:
		return invalid(fmt.Sprintf("a password has %d characters or more", shortestPassword))
	case len(password) > longestPassword:
		return invalid(fmt.Sprintf("that is more than the %d bytes that fit", longestPassword))
	}
	return nil
}

// clean is text that every database takes: visible, valid UTF-8, and not too long.
func clean(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	if runes := []rune(text); len(runes) > limit {
		text = string(runes[:limit])
	}
	return strings.TrimSpace(text)
}
