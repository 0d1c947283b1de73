# Work of an interpreter with short waits in it. Usage: busy.pl SECONDS
use strict;
use Time::HiRes qw(time sleep);

sub fold {
    my $depth = shift;
    return fold($depth - 1) + fold($depth - 1) if $depth;
    return length join ",", sort { $a <=> $b } map { $_ * 7 % 31 } 1 .. 20;
}

my $end = time + $ARGV[0];
while (time < $end) {
    fold(7);
    ("x" x 300) =~ /(x+x+)+y/ for 1 .. 3;
    sleep 0.002;
}
